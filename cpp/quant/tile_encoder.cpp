#include "format/reference.h"
#include "quant/quant.h"
#include "quant/viterbi.h"

namespace tq::quant {

struct TileEncoder::Impl {
  int k;
  std::vector<int8_t> codebook;
  std::unique_ptr<Viterbi> viterbi;  // of the trellis formats; the others round one weight at a time, as the reference does
};

TileEncoder::TileEncoder(int k, std::span<const int8_t> codebook) : impl_(new Impl{k, {codebook.begin(), codebook.end()}, nullptr}) {
  if (tqn::is_trellis(k)) impl_->viterbi = std::make_unique<Viterbi>(k, codebook.data(), isa());
}
TileEncoder::~TileEncoder() = default;
TileEncoder::TileEncoder(TileEncoder&&) noexcept = default;

float TileEncoder::encode(const float* x, uint8_t* tile, int8_t* values, const float* row_weight) {
  if (impl_->viterbi)
    impl_->viterbi->encode(x, row_weight, tile);
  else
    reference::encode_tile(x, impl_->k, impl_->codebook.data(), tile);
  reference::decode_tile(tile, impl_->k, impl_->codebook.data(), values);
  float error = 0;
  for (int t = 0; t < tqn::kTileSteps; t++) error += (x[t] - values[t]) * (x[t] - values[t]);
  return error;
}

}  // namespace tq::quant
