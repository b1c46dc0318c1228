// For Haswell, Zen and what came after them.
#if defined(__x86_64__)
#define MIM4DD_ISA avx2
#define MIM4DD_REGISTERS 16
#define MIM4DD_VECTOR_BYTES 32
#include "bodies.h"
#endif
