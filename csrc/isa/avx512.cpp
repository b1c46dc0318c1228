// For Skylake servers, Ice Lake, Zen 4 and what came after them.
#if defined(__x86_64__)
#define MIM4DD_ISA avx512
#define MIM4DD_REGISTERS 32
#define MIM4DD_VECTOR_BYTES 64
#include "bodies.h"
#endif
