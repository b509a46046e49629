// The mark of a function that is compiled for processors and for CUDA devices alike, so that both
// compute the same bits from one source. Such files are compiled without contraction of a * b + c.
#pragma once

#if defined(__CUDACC__)
#define REPRISE_BOTH __host__ __device__
#else
#define REPRISE_BOTH
#endif
