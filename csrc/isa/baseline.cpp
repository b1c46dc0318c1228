// For every CPU of this architecture: SSE2 on x86-64, NEON on ARM.
#define MIM4DD_ISA baseline
#if defined(__aarch64__)
#define MIM4DD_REGISTERS 32
#else
#define MIM4DD_REGISTERS 16
#endif
#define MIM4DD_VECTOR_BYTES 16
#include "bodies.h"
