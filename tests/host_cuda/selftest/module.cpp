// Python module of the emulator's self-test: the launchers on numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "launchers.h"

extern "C" const char* hybrid_emulator_error();

namespace py = pybind11;

namespace {

using Words = py::array_t<uint16_t, py::array::c_style>;  // float16 as its bits
using Floats = py::array_t<float, py::array::c_style>;
using Dim = std::array<unsigned, 3>;

void check(int error) {
  if (error == 0) return;
  throw std::runtime_error("error " + std::to_string(error) + ": " + hybrid_emulator_error());
}

void softmax(const Words& x, Words y, int bug) {
  check(launch_softmax(x.data(), y.mutable_data(), x.shape(0), x.shape(1), bug));
}

void flash(const Words& q, const Words& k, const Words& v, Words out, float scale, int bug) {
  check(launch_flash(q.data(), k.data(), v.data(), out.mutable_data(), q.shape(0), q.shape(1),
                     k.shape(1), scale, bug));
}

int block_sum(const Floats& x, Floats out) {
  int negatives = 0;
  check(launch_block_sum(x.data(), out.mutable_data(), &negatives, x.shape(0), x.shape(1)));
  return negatives;
}

void nothing(const Dim& grid, const Dim& block, size_t shared_bytes, size_t opt_in_bytes) {
  const unsigned g[3] = {grid[0], grid[1], grid[2]}, b[3] = {block[0], block[1], block[2]};
  check(launch_nothing(g, b, shared_bytes, opt_in_bytes));
}

py::array_t<uint32_t> read_unwritten(int blocks) {
  py::array_t<uint32_t> out({blocks, 2});
  check(launch_read_unwritten(out.mutable_data(), blocks));
  return out;
}

void two_collectives() {
  py::array_t<uint32_t> out(32);
  check(launch_two_collectives(out.mutable_data()));
}

}  // namespace

PYBIND11_MODULE(host_cuda_selftest, m) {
  m.def("softmax", &softmax);
  m.def("flash", &flash);
  m.def("block_sum", &block_sum);
  m.def("nothing", &nothing, py::arg("grid"), py::arg("block"), py::arg("shared_bytes") = 0,
        py::arg("opt_in_bytes") = 0);
  m.def("read_unwritten", &read_unwritten);
  m.def("two_collectives", &two_collectives);
}
