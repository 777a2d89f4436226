// What kernels receive: plain structs of device pointers, passed by value.
#pragma once
#include <cstdint>

#include "format/tqn.h"

namespace tq::cuda {

inline constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows of operands that matrix kernels read end on a multiple of this many bytes, zeros beyond the width.
inline constexpr int kRowAlign = 256;

// Rows of int8 operands as Hopper's products read them: tiles of `rows` rows x 128 bytes, each contiguous, its 16-byte chunks in the
// 128-byte swizzle.
inline constexpr int kTokenTile = 128, kWeightTile = 256, kTileDepth = 128;
constexpr int64_t tiled_offset(int64_t row, int64_t column, int64_t stride, int tile_rows) {
  const int64_t tile = row / tile_rows * (stride / kTileDepth) + column / kTileDepth, r = row % tile_rows;
  return (tile * tile_rows + r) * kTileDepth + ((column % kTileDepth / 16) ^ (r & 7)) * 16 + column % 16;
}

struct OutlierView {
  const int32_t* ptr = nullptr;  // null: none
  const uint16_t* col16 = nullptr;
  const int32_t* col32 = nullptr;
  const uint16_t* val = nullptr;  // float16
};

// Codes on the device: kGroupTiles tiles of a strip stand together, the first planes of all, then the second ones, so that a warp, which
// decodes them together, loads whole lines. A strip's last group is filled up with zeros.
inline constexpr int kGroupTiles = 8;
inline constexpr int kGroupPlane = kGroupTiles * tqn::kTileLanes;  // bytes between a tile's planes
constexpr int64_t strip_bytes(int tiles, int k) { return round_up(tiles, kGroupTiles) * tqn::tile_bytes(k); }

// A copy of a codebook among a kernel's parameters, which are there when it starts.
struct Codebook {
  int8_t value[tqn::kCodebookSize] = {};
  bool operator==(const Codebook&) const = default;
};

struct PackedView {
  const uint8_t* codes = nullptr;
  const uint16_t* row_scale = nullptr;
  const int8_t* codebook = nullptr;
  Codebook book;
  OutlierView outliers;
  float scale = 0;
  int k = 0, n_out = 0, n_in = 0, strips = 0, tiles = 0;  // tiles: of a strip
  // Of kGroupTiles tiles, the first of them `tile`.
  constexpr const uint8_t* group(int64_t strip, int64_t tile) const {
    return codes + strip * strip_bytes(tiles, k) + tile * tqn::tile_bytes(k);
  }
};

enum class Element : uint8_t { i8, f16, bf16, f32 };
inline constexpr int bytes_of(Element e) { return e == Element::i8 ? 1 : e == Element::f32 ? 4 : 2; }

struct DenseView {
  Element element = Element::f32;
  const void* data = nullptr;
  int64_t stride = 0;  // bytes of a row, a multiple of 64
  int n_out = 0, n_in = 0;
};

// y[row * ldy + i] = (add ? y : 0) + alpha * (product_i + bias_i)
struct OutputView {
  float* y = nullptr;
  int64_t ldy = 0;
  const float* bias = nullptr;
  float alpha = 1;
  bool add = false;
};

// One input of linear layers in the forms that they read; what no layer reads is null.
struct InputView {
  int rows = 0, n_in = 0;
  const float* plain = nullptr;       // (rows, n_in)
  const float* rotated = nullptr;     // (rows, n_in)
  const int8_t* quantized = nullptr;  // rows are round_up(n_in, kRowAlign) bytes apart
  bool tiled = false;                 // or in tiles of kTokenTile rows
  const float* scale = nullptr;       // (rows)
  const void* half = nullptr;         // f16 or bf16, rows round_up(2 * n_in, kRowAlign) bytes apart
  constexpr int64_t quantized_stride() const { return round_up(n_in, kRowAlign); }
  constexpr int64_t half_stride() const { return round_up(2 * int64_t(n_in), kRowAlign); }
};

// Rows [first, first + count) of an input that is not tiled; `half` aside.
constexpr InputView rows_of(const InputView& in, int first, int count) {
  InputView part = in;
  part.rows = count, part.half = nullptr;
  if (in.plain) part.plain += int64_t(first) * in.n_in;
  if (in.rotated) part.rotated += int64_t(first) * in.n_in;
  part.quantized += first * in.quantized_stride(), part.scale += first;
  return part;
}

struct RotationView {
  int n = 0, log2_block = 0;
  const float* signs = nullptr;  // (n) +-1; null: no rotation
  int n_primes = 0;
  int primes[11] = {};            // 3^10 < 65536 < 3^11
  const float* hartley[11] = {};  // per prime: (q, q)
};

// Per-batch inputs in device memory.
struct BatchView {
  int rows = 0, n_outputs = 0;
  const int32_t *tokens = nullptr, *positions = nullptr, *slots = nullptr, *output_rows = nullptr;
};

}  // namespace tq::cuda
