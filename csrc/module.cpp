// The Python face of the CPU half: importing mim4dd._C runs the static initialisers that register
// the kernels of the other files, and that is all there is to it.
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
