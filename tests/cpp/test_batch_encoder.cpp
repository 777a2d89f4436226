// A device's encoder in place of the cores': with rows of one scale the codes are the same.
#include <random>

#include "check.h"
#include "quant/quant.h"

using namespace tq;

namespace {

std::vector<float> gaussian(int64_t count) {
  std::mt19937 engine{3};
  std::normal_distribution<float> normal;
  std::vector<float> w(static_cast<size_t>(count));
  for (float& v : w) v = normal(engine);
  return w;
}

void encode_tiles(std::span<const float> x, int k, std::span<const int8_t> codebook, std::span<uint8_t> codes) {
  quant::TileEncoder encoder(k, codebook);
  int8_t values[tqn::kTileSteps];
  for (size_t i = 0; i < x.size() / tqn::kTileSteps; i++) encoder.encode(&x[i * tqn::kTileSteps], &codes[i * tqn::tile_bytes(k)], values);
}

}  // namespace

TEST("codes and error through a batch encoder") {
  for (const int64_t n_out : {128, 130})
    for (const int k : {2, 4}) {
      const int64_t n_in = 24;
      const std::vector<float> w = gaussian(n_out * n_in), unit(size_t(n_out), 0.02f);
      quant::EncodeOptions options;
      options.k = k, options.unit_scale = unit, options.threads = 2;
      const quant::Packed expected = quant::encode(w, n_out, n_in, options);
      int64_t last = 0;
      options.batch_encoder = encode_tiles, options.progress = [&](int64_t done) { last = done; };
      const quant::Packed found = quant::encode(w, n_out, n_in, options);
      // Padding rows weigh as much as others here and nothing on the cores, so that a last, partial strip may differ a little.
      if (n_out % tqn::kTileRows == 0) CHECK(found.codes == expected.codes);
      CHECK_NEAR(found.squared_error, expected.squared_error, (n_out % tqn::kTileRows ? 0.02 : 1e-9) * expected.squared_error);
      CHECK_EQ(last, n_out * n_in);
    }
}

TEST("formats without a trellis do not ask it") {
  const std::vector<float> w = gaussian(64 * 8);
  quant::EncodeOptions options;
  options.k = 6;
  options.batch_encoder = [](auto, int, auto, auto) { throw Error(Cause::unsupported, "asked"); };
  CHECK(quant::encode(w, 64, 8, options).squared_error > 0);
}

TEST("its error ends the work") {
  const std::vector<float> w = gaussian(64 * 8);
  quant::EncodeOptions options;
  options.k = 2;
  options.batch_encoder = [](auto, int, auto, auto) { throw Error(Cause::unsupported, "no device"); };
  CHECK_THROWS(quant::encode(w, 64, 8, options), Cause::unsupported, "no device");
}
