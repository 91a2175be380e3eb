// How a stencil over a map (B, H, W, C) is cut into jobs: images, bands of rows and blocks of
// channels. The shape alone decides, never the number of threads, so that partial sums, and with
// them every bit of the parameters' gradients, do not depend on it either.
#pragma once

#include "../arithmetic.h"
#include "../partial_sums.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// A job takes as many channels as keep its rows at hand in a core's second-level cache, up to
// kBlockChannels, and more where they stay in the first level: long pieces of pixels are what
// memory delivers fastest.
constexpr int64_t kRingBytes = int64_t{64} << 10;
constexpr int64_t kSmallRingBytes = int64_t{32} << 10;
constexpr int64_t kBlockChannels = 64, kMostChannels = 4 * kBlockChannels;
constexpr int64_t kJobs = 32;          // to aim at, by bands of no fewer than kBandRows
constexpr int64_t kBandRows = 14;      // the halo of a band is computed twice
constexpr int64_t kGroupPixels = 256;  // small images make a job together

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Job {
  int64_t image_begin, image_end, row_begin, row_end;
  int64_t channel, channels;  // the first, and how many
  int64_t part;               // place of the partial sums over pixels
};

template <class T>
struct Cut {
  int64_t B, H, C;
  int64_t images, band_rows, width;  // of a job; width: channels in whole vectors
  int64_t groups, bands, blocks, jobs;

  // `rows` rows of `columns` pixels are kept at hand. Bands hold whole groups of `unit` rows. Jobs
  // of a kind are about as large as each other: threads take the same number of them.
  Cut(int64_t B, int64_t H, int64_t W, int64_t C, int64_t rows, int64_t columns, int64_t unit = 1)
      : B(B), H(H), C(C), images(even(B, larger(1, kGroupPixels / (H * W)))) {
    groups = ceil_div(B, images);
    const int64_t pixel = rows * columns * static_cast<int64_t>(sizeof(Scalar));
    const int64_t block = larger(32, smaller(kBlockChannels, kRingBytes / pixel));
    const int64_t long_block = smaller(kMostChannels, kSmallRingBytes / pixel / block * block);
    width = whole_vectors<T>(even(C, larger(block, long_block)));
    blocks = ceil_div(C, width);
    const int64_t tall = larger(kBandRows, ceil_div(H, ceil_div(kJobs, groups * blocks)));
    const int64_t wanted = larger(1, (H + tall / 2) / tall);  // none is much below kBandRows
    band_rows = ceil_div(ceil_div(H, wanted), unit) * unit;
    bands = ceil_div(H, band_rows);
    jobs = groups * bands * blocks;
  }

  Job job(int64_t index) const {
    const int64_t part = index / blocks, channel = index % blocks * width;
    const int64_t image = part / bands * images, row = part % bands * band_rows;
    return {image,   smaller(B, image + images),  row, smaller(H, row + band_rows),
            channel, smaller(C - channel, width), part};
  }

  int64_t parts() const { return groups * bands; }
  int64_t row_of_sums() const { return blocks * width; }

 private:
  using Scalar = typename Arithmetic<T>::Scalar;

  // The largest piece, up to `most`, of `count` things in pieces that are as even as can be.
  static int64_t even(int64_t count, int64_t most) {
    return ceil_div(count, ceil_div(count, most));
  }
};

// Partial sums over pixels: `terms` rows of C for every part.
template <class T>
struct PartSums {
  using Scalar = typename Arithmetic<T>::Scalar;
  int64_t terms, row, parts;
  Scalar* data;

  PartSums(int64_t parts, int64_t terms, int64_t row, void* workspace)
      : terms(terms), row(row), parts(parts), data(static_cast<Scalar*>(workspace)) {}
  PartSums(const Cut<T>& cut, int64_t terms, void* workspace)
      : PartSums(cut.parts(), terms, cut.row_of_sums(), workspace) {}

  int64_t bytes() const { return parts * terms * row * static_cast<int64_t>(sizeof(Scalar)); }

  // Of a part: row `term` begins at at(part) + term * row.
  Scalar* at(int64_t part) const { return data + part * terms * row; }
  Scalar* at(const Job& job) const { return at(job.part) + job.channel; }

  void clear(const Job& job, int64_t width) const {
    for (int64_t term = 0; term < terms; ++term) zero(at(job) + term * row, width);
  }

  void clear(int64_t part) const { zero(at(part), terms * row); }

  // The sums of `count` terms from `first` on, over all parts, to `grad` (count, C) unless null.
  void reduce(int64_t first, int64_t count, int64_t C, void* grad) const {
    for (int64_t term = 0; grad && term < count; ++term)
      sum_parts(data + (first + term) * row, parts, terms * row, C,
                static_cast<Scalar*>(grad) + term * C);
  }
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
