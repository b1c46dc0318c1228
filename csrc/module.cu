// The Python face of the CUDA half. `architectures` is what `mim4dd doctor` prints.
#include <Python.h>

#define MIM4DD_STRINGIFY(...) #__VA_ARGS__
#define MIM4DD_EXPAND_AND_STRINGIFY(...) MIM4DD_STRINGIFY(__VA_ARGS__)

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) {
    PyModule_AddStringConstant(
        module, "architectures", MIM4DD_EXPAND_AND_STRINGIFY(__CUDA_ARCH_LIST__));
  }
  return module;
}
