// Code that a CPU and a GPU share.
#pragma once

#include "simd.h"

#if defined(__CUDACC__)
#define MIM4DD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MIM4DD_HOST_DEVICE MIM4DD_INLINE
#endif
