// The Python face of the CPU half: importing mim4dd._C runs the static initialisers that register
// the kernels of the other files, and chooses the instruction set.
#include <Python.h>

#include <cstdlib>
#include <initializer_list>
#include <string>

#include "isa.h"
#include "tile_sizes.h"

namespace {

using mim4dd::Isa;

std::string names_of_runnable() {
  std::string names;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (mim4dd::runs_here(isa)) names += (names.empty() ? "" : " ") + std::string(name_of(isa));
  }
  return names;
}

// set_tile_sizes(rows, columns, wave_bytes) -> the ones before.
PyObject* set_tile_sizes(PyObject*, PyObject* arguments) {
  long long rows, columns, wave_bytes;
  if (!PyArg_ParseTuple(arguments, "LLL", &rows, &columns, &wave_bytes)) return nullptr;
  if (rows <= 0 || rows % mim4dd::kRowsTogether != 0 || columns <= 0 || wave_bytes < 0) {
    return PyErr_Format(
        PyExc_ValueError,
        "rows must be a positive multiple of %d, columns positive and wave_bytes not negative, "
        "got %lld, %lld and %lld",
        static_cast<int>(mim4dd::kRowsTogether), rows, columns, wave_bytes);
  }
  mim4dd::TileSizes& sizes = mim4dd::tile_sizes;
  return Py_BuildValue(
      "(LLL)", static_cast<long long>(sizes.rows.exchange(rows)),
      static_cast<long long>(sizes.columns.exchange(columns)),
      static_cast<long long>(sizes.wave_bytes.exchange(wave_bytes)));
}

PyMethodDef methods[] = {
    {"set_tile_sizes", set_tile_sizes, METH_VARARGS,
     "set_tile_sizes(rows, columns, wave_bytes): for tests, of all passes over logits that begin "
     "after it; returns the sizes before."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  const char* wanted = std::getenv("MIM4DD_CPU");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  const std::string runnable = names_of_runnable();
  if (!mim4dd::choose_isa(wanted)) {
    return PyErr_Format(
        PyExc_ValueError, "MIM4DD_CPU must be one of '%s', which this CPU runs, got '%s'",
        runnable.c_str(), wanted);
  }
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* const module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  // The instruction set that the kernels run on, and those that they could.
  if (PyModule_AddStringConstant(module, "instruction_set", name_of(mim4dd::chosen_isa)) < 0 ||
      PyModule_AddStringConstant(module, "instruction_sets", runnable.c_str()) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
