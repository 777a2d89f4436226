// Every rule that a packed matrix must hold before any kernel touches it, each with its own error.
#include <cmath>
#include <limits>

#include "common/error.h"
#include "common/text.h"
#include "format/matrix.h"
#include "format/reference.h"

namespace tq {
namespace {

class Checker {
 public:
  Checker(const std::string& name, const TqnMatrix& m, const PlaneSizes& sizes) : name_(name), m_(m), sizes_(sizes) {}

  void run() const {
    shape();
    planes();
    scales();
    codebook();
    outlier_planes();
    if (m_.outliers.count) outliers();
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::string text = name_ + ": ";
    ((text += part(parts)), ...);
    throw Error(Cause::bad_file, text);
  }
  static std::string part(const std::string& text) { return text; }
  static std::string part(const char* text) { return text; }
  static std::string part(float value) { return number(value); }
  template <class Integer>
  static std::string part(Integer value) {
    return std::to_string(value);
  }

  void shape() const {
    if (!tqn::is_format(m_.k)) fail("bits is ", m_.k, ", known are ", format_list());
    if (m_.n_out < 1 || m_.n_out >= std::numeric_limits<int32_t>::max()) fail("n_out is ", m_.n_out, ", must be 1 to 2^31 - 2");
    if (m_.n_in < 1 || m_.n_in > tqn::kMaxInputs) fail("n_in is ", m_.n_in, ", must be 1 to ", tqn::kMaxInputs);
    if (m_.n_in % tqn::kTileCols) fail("n_in is ", m_.n_in, ", must be a multiple of ", tqn::kTileCols);
  }

  void plane(const char* what, uint64_t found, uint64_t wanted) const {
    if (found != wanted) fail("plane ", what, " has ", found, " bytes, its shape asks for ", wanted);
  }

  void planes() const {
    tqn::PlaneBytes wanted;
    if (!tqn::plane_bytes(uint64_t(m_.n_out), uint64_t(m_.n_in), m_.k, &wanted)) fail("no plane sizes for this shape");
    plane("codes", sizes_.codes, wanted.codes);
    plane("row_scale", sizes_.row_scale, wanted.row_scale);
    plane("codebook", sizes_.codebook, wanted.codebook);
  }

  void scales() const {
    if (!std::isfinite(m_.scale) || m_.scale <= 0) fail("scale is ", m_.scale, ", must be finite and positive");
    if (!std::isfinite(m_.scale * 128)) fail("scale is ", m_.scale, ", weights would overflow float32");
    const int64_t padded = int64_t(tqn::padded_rows(uint64_t(m_.n_out)));
    for (int64_t i = 0; i < padded; i++) {
      const float s = f16_to_f32(m_.row_scale[i]);
      if (!(s >= 0 && s <= 1)) fail("row_scale[", i, "] is ", s, ", must be in [0, 1]");
      if (i >= m_.n_out && s != 0) fail("row_scale[", i, "] of a padding row is ", s, ", must be 0");
    }
  }

  void codebook() const {
    if (!tqn::has_codebook(m_.k)) return;
    if (const std::string fault = reference::codebook_fault(m_.k, m_.codebook); !fault.empty()) fail(fault);
  }

  void outlier_planes() const {
    const Outliers& s = m_.outliers;
    if (s.count < 0 || s.count > m_.n_out * m_.n_in || s.count > std::numeric_limits<int32_t>::max())
      fail("outlier count is ", s.count, ", impossible for ", m_.n_out, " x ", m_.n_in);
    const uint64_t count = uint64_t(s.count), col_bytes = m_.n_in <= 65536 ? 2 : 4;
    plane("out_ptr", sizes_.out_ptr, count ? (uint64_t(m_.n_out) + 1) * 4 : 0);
    plane("out_col", sizes_.out_col, count * col_bytes);
    plane("out_val", sizes_.out_val, count * 2);
  }

  void outliers() const {
    const Outliers& s = m_.outliers;
    if (s.ptr[0] != 0) fail("out_ptr[0] is ", s.ptr[0], ", must be 0");
    if (s.ptr[m_.n_out] != s.count) fail("out_ptr[", m_.n_out, "] is ", s.ptr[m_.n_out], ", the outlier count is ", s.count);
    for (int64_t row = 0; row < m_.n_out; row++)
      if (s.ptr[row + 1] < s.ptr[row]) fail("out_ptr decreases at row ", row);
    for (int64_t row = 0; row < m_.n_out; row++) outlier_row(row);
  }

  void outlier_row(int64_t row) const {
    const Outliers& s = m_.outliers;
    for (int64_t i = s.ptr[row]; i < s.ptr[row + 1]; i++) {
      if (s.col(i) < 0 || s.col(i) >= m_.n_in) fail("out_col[", i, "] is ", s.col(i), ", n_in is ", m_.n_in);
      if (i > s.ptr[row] && s.col(i) <= s.col(i - 1)) fail("out_col does not increase at entry ", i, " of row ", row);
      if (!std::isfinite(f16_to_f32(s.val[i]))) fail("out_val[", i, "] is not finite");
    }
  }

  const std::string& name_;
  const TqnMatrix& m_;
  const PlaneSizes& sizes_;
};

}  // namespace

std::string format_list() {
  std::string text;
  for (const int k : tqn::Formats::bits) text += (text.empty() ? "" : ", ") + std::to_string(k);
  return text;
}

void validate(const std::string& name, const TqnMatrix& matrix, const PlaneSizes& sizes) { Checker(name, matrix, sizes).run(); }

}  // namespace tq
