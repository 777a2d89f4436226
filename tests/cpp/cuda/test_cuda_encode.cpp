// The device's encoder against the oracle's: the same search with costs rounded to eighths of a codebook unit.
#include "backend/cuda_library.h"
#include "cuda_check.h"

using namespace cuda_check;

namespace {

double squared_error(const float* x, const uint8_t* tile, int k, const int8_t* codebook) {
  double sum = 0;
  for (int t = 0; t < tqn::kTileSteps; t++) sum += std::pow(double(x[t]) - tqn::value(tile, k, t, codebook), 2);
  return sum;
}

void check_tiles(int k, float deviation) {
  const int tiles = small_cases() ? 1 : 12;
  Random random{uint64_t(k)};
  const int8_t* codebook = reference::default_codebook(k).data();
  std::vector<float> x = random.normals(tiles * tqn::kTileSteps);
  for (float& v : x) v *= deviation;
  std::vector<uint8_t> codes(size_t(tiles) * tqn::tile_bytes(k)), expected(tqn::tile_bytes(k));
  cuda_library().encode(0, x.data(), tiles, k, codebook, codes.data());
  double ours = 0, best = 0;
  for (int i = 0; i < tiles; i++) {
    ours += squared_error(&x[size_t(i) * tqn::kTileSteps], &codes[size_t(i) * tqn::tile_bytes(k)], k, codebook);
    best += reference::encode_tile(&x[size_t(i) * tqn::kTileSteps], k, codebook, expected.data());
  }
  // A target off by at most 1/16 (k = 4: 1/8 of its double) moves a path's cost by at most that times twice the range of values, in random
  // directions.
  CHECK(ours < best * 1.002 + 1);
}

}  // namespace

TEST("codes are as good as the oracle's for every trellis format") {
  (void)cuda_backend(Precision::int8);
  for (const int k : {1, 2, 3, 4})
    for (const float deviation : {0.f, 3.f, 45.f, 80.f}) check_tiles(k, deviation);
}

TEST("formats without a trellis are refused by name") {
  (void)cuda_backend(Precision::int8);
  const float x[tqn::kTileSteps] = {};
  uint8_t codes[256];
  CHECK_THROWS(cuda_library().encode(0, x, 1, 6, reference::default_codebook(6).data(), codes), Cause::unsupported, "encoding at 6 bits");
}
