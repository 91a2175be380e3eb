// Atrous window partition and its inverse: parameters and launchers.
//
// partition: x (B, H, W, C) -> windows (B, d*d*nu*nv, P*P, C) with nu = ceil(H / (P d)) and
// nv = ceil(W / (P d)). Window ((p*d + q)*nu + u)*nv + v, slot a*P + b holds pixel
// ((u*P + a)*d + p, (v*P + b)*d + q), or `fill` where that lies outside the map.
// merge: the inverse; slots outside the map are dropped.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

struct AtrousPartitionParams {
  int32_t element_size;  // bytes: 2, 4 or 8; values are only copied
  int64_t B, H, W, C;
  int64_t P, d, nu, nv;
  void* map;              // (B, H, W, C), any strides; read by partition, written by merge
  int64_t map_stride[4];  // in elements
  void* windows;          // (B, d*d*nu*nv, P*P, C); written by partition, read by merge
  int64_t windows_stride[4];
  uint64_t fill;  // the bits of one element
};

// CPU kernels. Items are the rows of the maps as the windows extend them: B*nu*P*d of them.
struct AtrousPartitionCpu {
  void (*partition)(const AtrousPartitionParams&, int64_t begin, int64_t end);
  void (*merge)(const AtrousPartitionParams&, int64_t begin, int64_t end);
};

}  // namespace hybrid

extern "C" {
int hk_atrous_partition(const hybrid::AtrousPartitionParams*, void* stream);
int hk_atrous_merge(const hybrid::AtrousPartitionParams*, void* stream);
}
