// Every rule of a packed matrix, each broken alone and refused by its own text; then random damage: what passes must decode without harm.
#include <bit>
#include <limits>

#include "check.h"
#include "tiles.h"

using namespace tq;
using tests::Matrix;

static void validate(const Matrix& m) { tq::validate("blk.0.w", m.view(), m.sizes()); }

#define CHECK_REFUSED(change, text)                               \
  do {                                                            \
    Matrix m(100, 36, 2, 5);                                      \
    TqnMatrix& view = m.view_;                                    \
    (void)view;                                                   \
    change;                                                       \
    CHECK_THROWS(validate(m), Cause::bad_file, "blk.0.w: " text); \
  } while (0)

TEST("valid matrices pass") {
  for (int k : tests::kFormats)
    for (int64_t n_out : {1, 64, 100}) validate(Matrix(n_out, 36, k, 5));
  Matrix plain(100, 36, 2, 5);
  plain.ptr.clear(), plain.col.clear(), plain.val.clear();
  validate(plain);
  CHECK(true);
}

TEST("shapes") {
  CHECK_REFUSED(view.k = 5, "bits is 5, known are 1, 2, 3, 4, 6, 8");
  CHECK_REFUSED(view.k = 0, "bits is 0");
  CHECK_REFUSED(view.n_out = 0, "n_out is 0");
  CHECK_REFUSED(view.n_out = -1, "n_out is -1");
  CHECK_REFUSED(view.n_out = std::numeric_limits<int64_t>::max(), "n_out is 9223372036854775807");
  CHECK_REFUSED(view.n_in = 0, "n_in is 0");
  CHECK_REFUSED(view.n_in = -4, "n_in is -4");
  CHECK_REFUSED(view.n_in = 65540, "n_in is 65540, must be 1 to 65536");
  CHECK_REFUSED(view.n_in = 38, "n_in is 38, must be a multiple of 4");
}

TEST("plane sizes") {
  CHECK_REFUSED(m.codes.pop_back(), "plane codes has 1151 bytes, its shape asks for 1152");
  CHECK_REFUSED(m.codes.push_back(0), "plane codes has 1153 bytes");
  CHECK_REFUSED(m.row_scale.pop_back(), "plane row_scale has 254 bytes, its shape asks for 256");
  CHECK_REFUSED(m.codebook.pop_back(), "plane codebook has 31 bytes, its shape asks for 32");
  CHECK_REFUSED(m.ptr.pop_back(), "plane out_ptr has 400 bytes, its shape asks for 404");
  CHECK_REFUSED(m.val.pop_back(), "plane out_val has");
  CHECK_REFUSED(m.col.clear(), "plane out_ptr has 404 bytes, its shape asks for 0");
  Matrix raw(64, 36, 8, 5);
  raw.codebook.resize(64);
  CHECK_THROWS(validate(raw), Cause::bad_file, "plane codebook has 64 bytes, its shape asks for 0");
  Matrix m(100, 36, 2, 5);
  PlaneSizes sizes = m.sizes();
  sizes.out_col++;
  CHECK_THROWS(tq::validate("blk.0.w", m.view(), sizes), Cause::bad_file, "plane out_col has");
}

TEST("scales and codebook") {
  CHECK_REFUSED(view.scale = 0, "scale is 0, must be finite and positive");
  CHECK_REFUSED(view.scale = -1, "scale is -1");
  CHECK_REFUSED(view.scale = NAN, "scale is nan");
  CHECK_REFUSED(view.scale = INFINITY, "scale is inf");
  CHECK_REFUSED(view.scale = 3e38f, "scale is 3e+38, weights would overflow float32");
  CHECK_REFUSED(m.row_scale[3] = f32_to_f16(1.001f), "row_scale[3] is 1.0009766, must be in [0, 1]");
  CHECK_REFUSED(m.row_scale[3] = f32_to_f16(-.5f), "row_scale[3] is -0.5");
  CHECK_REFUSED(m.row_scale[99] = 0x7E00, "row_scale[99] is nan");
  CHECK_REFUSED(m.row_scale[0] = 0x7C00, "row_scale[0] is inf");
  CHECK_REFUSED(m.row_scale[100] = f32_to_f16(.5f), "row_scale[100] of a padding row is 0.5");
  CHECK_REFUSED(m.codebook[10] = 16, "codebook[10] is 16, must be in [0, 15]");
  CHECK_REFUSED(m.codebook[31] = -1, "codebook[31] is -1, must be in [0, 15]");
  Matrix sorted(100, 36, 6, 5);
  sorted.codebook[10] = 127;
  CHECK_THROWS(validate(sorted), Cause::bad_file, "codebook is not sorted at entry 11");
  Matrix odd(100, 36, 6, 5);
  odd.codebook[63] = 126;
  CHECK_THROWS(validate(odd), Cause::bad_file, "codebook[0] is -127, codebook[63] is 126: must be negatives of each other");
  odd.codebook[0] = -126;
  validate(odd);
  odd.codebook[0] = -128;
  CHECK_THROWS(validate(odd), Cause::bad_file, "codebook[0] is -128, codebook[63] is 126");
}

TEST("outliers") {
  CHECK_REFUSED(m.ptr[0] = 1, "out_ptr[0] is 1, must be 0");
  CHECK_REFUSED(m.ptr[100]++, "out_ptr[100] is 69, the outlier count is 68");
  CHECK_REFUSED(m.ptr[50] = 1, "out_ptr decreases at row 49");
  CHECK_REFUSED(m.ptr[1] = 100000, "out_ptr decreases at row 1");
  CHECK_REFUSED(m.ptr[1] = -5, "out_ptr decreases at row 0");
  CHECK_REFUSED(m.col[1] = 36, "out_col[1] is 36, n_in is 36");
  CHECK_REFUSED(m.col[1] = m.col[0], "out_col does not increase at entry 1 of row 0");
  CHECK_REFUSED(m.val[7] = 0x7C00, "out_val[7] is not finite");
  CHECK_REFUSED(m.val[7] = 0xFE00, "out_val[7] is not finite");
  Matrix m(1, 4, 2, 5);
  TqnMatrix view = m.view();
  for (int64_t count : {int64_t(-1), int64_t(5), std::numeric_limits<int64_t>::max()}) {
    view.outliers.count = count;
    CHECK_THROWS(tq::validate("w", view, m.sizes()), Cause::bad_file, "impossible for 1 x 4");
  }
}

// One random change; planes keep their buffers, sizes and shape fields may lie.
static void damage(Matrix& m, std::mt19937& random) {
  const auto any = [&](auto& v) -> auto& { return v[random() % v.size()]; };
  switch (random() % 9) {
    case 0:
      any(m.codes) = uint8_t(random());
      break;
    case 1:
      any(m.row_scale) = uint16_t(random());
      break;
    case 2:
      any(m.codebook) = int8_t(random());
      break;
    case 3:
      any(m.ptr) = int32_t(random() % 200) - 20;
      break;
    case 4:
      any(m.col) = uint16_t(random() % 80);
      break;
    case 5:
      any(m.val) = uint16_t(random());
      break;
    case 6:
      m.view_.scale = std::bit_cast<float>(uint32_t(random()));
      break;
    case 7:
      m.view_.n_out += int64_t(random() % 129) - 64;
      break;
    default:
      m.view_.n_in += (int64_t(random() % 33) - 16) * 2;
      break;
  }
}

TEST("random damage: refused, or harmless") {
  std::mt19937 random(11);
  int passed = 0;
  for (int round = 0; round < 20000; round++) {
    Matrix m(70, 20, tests::kFormats[random() % 5], 5);
    for (uint32_t i = random() % 3 + 1; i > 0; i--) damage(m, random);
    try {
      validate(m);
    } catch (const Error& e) {
      CHECK(e.cause == Cause::bad_file);
      continue;
    }
    passed++;
    std::vector<double> row(size_t(m.view().n_in));
    for (int64_t i = 0; i < m.view().n_out; i += 23) {
      reference::decode_row(m.view(), i, row.data());
      for (double v : row) CHECK(std::isfinite(v));
    }
  }
  CHECK(passed > 1000 && passed < 19000);
}
