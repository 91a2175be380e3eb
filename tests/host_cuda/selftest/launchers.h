// Plain C++ between the self-test's kernels and their Python module. All return 0 or an error.
#pragma once

#include <cstddef>
#include <cstdint>

int launch_softmax(const void* x, void* y, int rows, int n, int bug);
int launch_flash(const void* q, const void* k, const void* v, void* out, int batch, int N, int M,
                 float scale, int bug);
int launch_block_sum(const float* x, float* out, int* negatives, int blocks, int n);
// A kernel that does nothing, to try what a launch accepts.
int launch_nothing(const unsigned (&grid)[3], const unsigned (&block)[3], size_t shared_bytes,
                   size_t opt_in_bytes);
// out[i] = the first word of block i's shared memory before anybody wrote there: static, dynamic.
int launch_read_unwritten(uint32_t* out, int blocks);
// A warp whose lanes reach a shuffle and a ballot on different lines.
int launch_two_collectives(uint32_t* out);
