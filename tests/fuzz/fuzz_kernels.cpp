// All instruction sets of this machine agree with the scalar oracle to the bit, whatever the codes, shapes and activations.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "format/reference.h"
#include "fuzz/input.h"
#include "kernels/kernels.h"
#include "tiles.h"

using namespace tq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Numbers numbers({data, size});
  const int k = tests::kFormats[numbers.between(0, int(std::size(tests::kFormats)) - 1)];
  const int64_t n_out = numbers.between(1, 130), n_in = 4 * numbers.between(1, 40), n_tokens = numbers.between(1, 20);
  tests::Matrix matrix(n_out, n_in, k, 1);
  for (auto& byte : matrix.codes) byte = numbers.byte();
  std::vector<int8_t> a(size_t(n_tokens * n_in));
  for (auto& value : a) value = int8_t(std::max<int>(int8_t(numbers.byte()), -127));

  const TqnMatrix w = matrix.view();
  const int64_t rows = int64_t(tqn::padded_rows(uint64_t(n_out)));
  std::vector<int32_t> expected(static_cast<size_t>(n_tokens * n_out));
  for (int64_t t = 0; t < n_tokens; t++) reference::accumulate(w, a.data() + t * n_in, expected.data() + t * n_out);
  kernels::Activations x;
  x.n_tokens = n_tokens, x.n_in = n_in, x.quantized = a.data();
  for (const kernels::Kernels* kernel : kernels::all_kernels()) {
    const size_t scratch_bytes = size_t(kernel->linear_scratch_bytes(n_in, n_tokens) + 63) / 64 * 64 + 64;
    const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, scratch_bytes), std::free);
    std::vector<int32_t> acc(size_t(n_tokens * rows));
    kernel->accumulate(w, 0, int64_t(tqn::strips(uint64_t(n_out))), x, acc.data(), rows, scratch.get());
    for (int64_t t = 0; t < n_tokens; t++)
      if (!std::equal(expected.begin() + t * n_out, expected.begin() + (t + 1) * n_out, acc.begin() + t * rows)) {
        std::fprintf(stderr, "%.*s differs from the oracle: %d bits, %ld x %ld, token %ld of %ld\n", int(kernel->isa.size()),
                     kernel->isa.data(), k, long(n_out), long(n_in), long(t), long(n_tokens));
        std::abort();
      }
  }
  return 0;
}
