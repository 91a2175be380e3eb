// Multiscale attention on the CPU: chunks to panels and tiles. Compiled per instruction set, and
// for each direction and element type in a file of its own.
#pragma once

#include "cpu_heads.h"

namespace hybrid {
namespace HYBRID_ISA {

// Defined for float, bf16 and f16 in multiscale_attention_cpu_<direction>_<type>.cpp.
template <class T>
void attention_forward(const MultiscaleAttentionParams& p, int64_t chunk_begin, int64_t chunk_end);
template <class T>
void attention_backward(const MultiscaleAttentionParams& p, int64_t chunk_begin, int64_t chunk_end);

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

template <class T>
void run_forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  Forward<T> attend(p);
  const Cut cut = forward_cut(p);
  for_pieces(p, cut, query_panels(p.N).number, chunk_begin, chunk_end, [&](const Piece& piece) {
    begin<T>(attend, p, cut, piece);
    for (int64_t panel = piece.first; panel < piece.end; ++panel) attend(panel);
  });
}

template <class T>
void run_backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  Backward<T> attend(p);
  const Cut cut = backward_cut(p);
  const int64_t tiles = std::is_same_v<T, double> ? 1 : key_tiles(p.M).number;
  for_pieces(p, cut, tiles, chunk_begin, chunk_end, [&](const Piece& piece) {
    begin<T>(attend, p, cut, piece);
    for (int64_t tile = piece.first; tile < piece.end; ++tile) attend(tile);
    attend.end(piece.part, cut.parts);
  });
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
