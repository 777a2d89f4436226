// The device's encoder against the oracle's: the same codes.
#include "backend/cuda_library.h"
#include "device_check.h"

using namespace device_check;

namespace {

void check_tiles(int k, float deviation) {
  const int tiles = small_cases() ? 1 : 12;
  Random random{uint64_t(k)};
  const int8_t* codebook = reference::default_codebook(k).data();
  std::vector<float> x = random.normals(tiles * tqn::kTileSteps);
  for (float& v : x) v *= deviation;
  std::vector<uint8_t> codes(size_t(tiles) * tqn::tile_bytes(k)), expected(tqn::tile_bytes(k));
  cuda_library().encode(0, x.data(), tiles, k, codebook, codes.data());
  for (int i = 0; i < tiles; i++) {
    reference::encode_tile(&x[size_t(i) * tqn::kTileSteps], k, codebook, expected.data());
    CHECK(std::equal(expected.begin(), expected.end(), codes.begin() + i * int64_t(expected.size())));
  }
}

}  // namespace

TEST("codes are the oracle's for every trellis format") {
  (void)device_backend(Precision::int8);
  for (const int k : {1, 2, 3, 4})
    for (const float deviation : {0.f, 1.f, 5.f, 10.f, 1000.f}) check_tiles(k, deviation);
}

TEST("formats without a trellis are refused by name") {
  (void)device_backend(Precision::int8);
  const float x[tqn::kTileSteps] = {};
  uint8_t codes[256];
  CHECK_THROWS(cuda_library().encode(0, x, 1, 6, reference::default_codebook(6).data(), codes), Cause::unsupported, "encoding at 6 bits");
}
