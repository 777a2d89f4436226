// Speed and distortion of the trellis search, for every format and instruction set: weights a second on one core (median of repeated runs)
// and the mean squared error on 2^20 samples of N(0,1).
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

#include "format/reference.h"
#include "quant/viterbi.h"

namespace {

using tqn::kTileSteps;
constexpr int kSampleTiles = 4096, kTimedTiles = 100, kRepeats = 7;

std::vector<float> gaussian_tiles(int tiles, float unit) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(tiles) * kTileSteps);
  for (float& v : x) v = normal(random) / unit;
  return x;
}

double distortion(int k, const std::vector<float>& x, const tq::quant::Isa& isa) {
  const auto codebook = tq::reference::default_codebook(k);
  const double unit = tq::reference::default_unit(k);
  tq::quant::Viterbi viterbi(k, codebook.data(), isa);
  double error = 0;
  for (size_t at = 0; at < x.size(); at += kTileSteps) {
    uint8_t tile[256];
    int8_t values[kTileSteps];
    viterbi.encode(&x[at], nullptr, tile);
    tq::reference::decode_tile(tile, k, codebook.data(), values);
    for (int t = 0; t < kTileSteps; t++) error += (x[at + size_t(t)] - values[t]) * (x[at + size_t(t)] - values[t]);
  }
  return error * unit * unit / double(x.size());
}

double weights_per_second(int k, const std::vector<float>& x, const tq::quant::Isa& isa) {
  tq::quant::Viterbi viterbi(k, tq::reference::default_codebook(k).data(), isa);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    const std::clock_t start = std::clock();  // processor time: other work on the machine does not count
    uint8_t tile[256];
    for (int i = 0; i < kTimedTiles; i++) viterbi.encode(&x[size_t(i) * kTileSteps], nullptr, tile);
    seconds.push_back(double(std::clock() - start) / CLOCKS_PER_SEC);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return kTimedTiles * kTileSteps / seconds[kRepeats / 2];
}

}  // namespace

int main() {
  std::printf("%-8s %2s %12s %12s\n", "isa", "k", "M weights/s", "MSE N(0,1)");
  for (const auto* isa : tq::quant::all_isas())
    for (int k = 1; k <= tqn::kMaxTrellisBits; k++) {
      const auto x = gaussian_tiles(kSampleTiles, tq::reference::default_unit(k));
      std::printf("%-8s %2d %12.2f", isa->name.data(), k, weights_per_second(k, x, *isa) / 1e6);
      // Every instruction set finds the same codes: one measures the distortion.
      if (isa == tq::quant::all_isas().front()) std::printf(" %12.5f", distortion(k, x, *isa));
      std::printf("\n");
    }
}
