// Multiscale attention on the CPU: chunks to panels and tiles. Compiled per instruction set.
#include "cpu_heads.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// What a chunk stands for: items [first, end) of one image and head.
struct Piece {
  int64_t image;
  int head;
  int64_t first, end, part;
  bool is_last;  // of the pieces at hand
};

template <class Body>
void for_pieces(const Params& p, const Cut& cut, int64_t items, int64_t chunk_begin,
                int64_t chunk_end, Body body) {
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const int64_t pair = chunk / cut.parts, part = chunk % cut.parts;
    body(Piece{pair / p.h, static_cast<int>(pair % p.h), items * part / cut.parts,
               items * (part + 1) / cut.parts, part, chunk + 1 == chunk_end});
  }
}

// Panels or tiles for the piece's image and head; fetches what the next ones will need.
template <class T, class Work>
void begin(Work& work, const Params& p, const Cut& cut, const Piece& piece) {
  work.begin(piece.image, piece.head);
  if (piece.is_last || cut.parts > 1) return;
  const bool next_image = piece.head + 1 == p.h;
  if constexpr (!std::is_same_v<T, double>)
    work.prefetch(piece.image + next_image, next_image ? 0 : piece.head + 1);
}

int64_t forward_chunks(const Params& p) { return forward_cut(p).chunks(); }

void launch_forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  by_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    Forward<T> attend(p);
    const Cut cut = forward_cut(p);
    for_pieces(p, cut, query_panels(p.N).number, chunk_begin, chunk_end, [&](const Piece& piece) {
      begin<T>(attend, p, cut, piece);
      for (int64_t panel = piece.first; panel < piece.end; ++panel) attend(panel);
    });
  });
}

int64_t backward_chunks(const Params& p) { return backward_cut(p).chunks(); }

void launch_backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  by_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    Backward<T> attend(p);
    const Cut cut = backward_cut(p);
    const int64_t tiles = std::is_same_v<T, double> ? 1 : key_tiles(p.M).number;
    for_pieces(p, cut, tiles, chunk_begin, chunk_end, [&](const Piece& piece) {
      begin<T>(attend, p, cut, piece);
      for (int64_t tile = piece.first; tile < piece.end; ++tile) attend(tile);
      attend.end(piece.part, cut.parts);
    });
  });
}

int64_t workspace_bytes(const Params& p) {
  const Cut cut = backward_cut(p);
  return p.grad_q && cut.parts > 1 ? cut.chunks() * p.N * p.d * int64_t{sizeof(float)} : 0;
}

// grad_q is the sum over its parts, in ascending order.
template <class T>
void sum_parts(const Params& p, int64_t begin, int64_t end) {
  const int64_t parts = backward_cut(p).parts, size = p.N * p.d;
  for (int64_t pair = begin; pair < end; ++pair) {
    float* sums = static_cast<float*>(p.workspace) + pair * parts * size;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
    T* grad = static_cast<T*>(p.grad_q) + (pair / p.h * p.N * p.h + pair % p.h) * p.d;
    for (int64_t n = 0; n < p.N; ++n)
      for (int c = 0; c < p.d; ++c) grad[n * p.h * p.d + c] = from_float<T>(sums[n * p.d + c]);
  }
}

void reduce(const Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) sum_parts<float>(p, begin, end);
  if (p.dtype == DType::bf16) sum_parts<bf16>(p, begin, end);
  if (p.dtype == DType::f16) sum_parts<f16>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const MultiscaleAttentionCpu& cpu_table<MultiscaleAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr MultiscaleAttentionCpu table{forward_chunks,  launch_forward,  backward_chunks,
                                                workspace_bytes, launch_backward, reduce};
  return table;
}

}  // namespace hybrid
