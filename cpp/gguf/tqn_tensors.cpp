// From the list in turboquant.tensors to validated views of the planes.
#include <algorithm>
#include <set>

#include "common/error.h"
#include "common/text.h"
#include "format/tqn.h"
#include "gguf/gguf.h"
#include "gguf/json.h"

namespace tq::gguf {

static constexpr std::string_view kVersionKey = "turboquant.version", kTensorsKey = "turboquant.tensors";

[[noreturn]] static void fail(const File& file, const std::string& what, Cause cause = Cause::bad_file) {
  throw Error(cause, printable(file.path()) + ": " + what);
}

struct PlaneName {
  const char* suffix;
  uint32_t type;
};
static constexpr PlaneName kCodes{".tqn", kI8}, kRowScale{".tqn_scale", kF16}, kCodebook{".tqn_cb", kI8};
static constexpr PlaneName kOutPtr{".tqn_out_ptr", kI32}, kOutCol{".tqn_out_col", kI16}, kOutVal{".tqn_out_val", kF16};

// The planes of one matrix: finds each, checks its type, and remembers which tensors of the file belong to a matrix.
class PlaneFinder {
 public:
  PlaneFinder(const File& file, std::set<std::string_view>* used) : file_(file), used_(used) {}

  // Null, and 0 bytes, where the file lacks the plane.
  template <class T>
  const T* find(const std::string& matrix, PlaneName plane, uint64_t* bytes) const {
    const Tensor* tensor = file_.find(matrix + plane.suffix);
    if (!tensor) return nullptr;
    if (tensor->type != plane.type) {
      fail(file_, "tensor " + printable(tensor->name) + " has the type " + type_layout(tensor->type)->name + " where " +
                      type_layout(plane.type)->name + " is needed");
    }
    used_->insert(tensor->name);
    *bytes = tensor->data.size();
    return reinterpret_cast<const T*>(tensor->data.data());  // aligned: tensors start at multiples of 8 bytes of a mapped page
  }

 private:
  const File& file_;
  std::set<std::string_view>* used_;
};

static Rotation parse_rotation(const std::string& text) {
  if (text == "none") return Rotation::none;
  if (text == "hartley-hadamard") return Rotation::hartley_hadamard;
  throw Error(Cause::bad_file, "\"rotation\" is unknown: " + printable(text));
}

static int64_t dimension(const json::Value& entry, std::string_view name) {
  const uint64_t value = entry.integer(name);
  if (value > uint64_t(INT64_MAX)) throw Error(Cause::bad_file, printable(name) + " is too large: " + std::to_string(value));
  return int64_t(value);
}

static TqnMatrix parse_entry(const json::Value& entry) {
  if (entry.kind != json::Kind::object) throw Error(Cause::bad_file, "its entry in the list is not an object");
  TqnMatrix matrix;
  const uint64_t bits = entry.integer("bits");
  if (bits > 64 || !tqn::is_format(int(bits)))
    throw Error(Cause::bad_file, "\"bits\" is " + std::to_string(bits) + ", known are " + format_list());
  matrix.k = int(bits);
  matrix.n_out = dimension(entry, "n_out");
  matrix.n_in = dimension(entry, "n_in");
  matrix.scale = float(entry.number("scale"));
  matrix.rotation = parse_rotation(entry.string("rotation"));
  matrix.seed = json::parse_u64(entry.string("seed"), "seed");
  matrix.outliers.count = dimension(entry, "outliers");
  return matrix;
}

static PlaneSizes attach_planes(const PlaneFinder& finder, const std::string& name, TqnMatrix& matrix) {
  PlaneSizes sizes;
  matrix.codes = finder.find<uint8_t>(name, kCodes, &sizes.codes);
  matrix.row_scale = finder.find<uint16_t>(name, kRowScale, &sizes.row_scale);
  matrix.codebook = finder.find<int8_t>(name, kCodebook, &sizes.codebook);
  matrix.outliers.ptr = finder.find<int32_t>(name, kOutPtr, &sizes.out_ptr);
  matrix.outliers.col16 = finder.find<uint16_t>(name, kOutCol, &sizes.out_col);
  matrix.outliers.val = finder.find<uint16_t>(name, kOutVal, &sizes.out_val);
  return sizes;
}

// A plane that no entry claims would be ignored by every reader: damage, or a writer's mistake.
static void refuse_strays(const File& file, const std::set<std::string_view>& used) {
  for (const Tensor& tensor : file.tensors()) {
    const size_t dot = tensor.name.rfind('.');
    const bool plane = dot != std::string_view::npos && tensor.name.substr(dot).starts_with(kCodes.suffix);
    if (plane && !used.contains(tensor.name))
      fail(file, "tensor " + printable(tensor.name) + " belongs to no matrix of " + std::string(kTensorsKey));
  }
}

static bool has_packed_tensors(const File& file) {
  if (!file.get(kVersionKey)) {
    if (file.get(kTensorsKey)) fail(file, "metadata key " + printable(kVersionKey) + " is missing");
    return false;
  }
  const uint64_t version = file.u64(kVersionKey);
  if (version != tqn::kVersion) {
    fail(file,
         std::string(kVersionKey) + " is " + std::to_string(version) + "; this release reads version " + std::to_string(tqn::kVersion) +
             (version < tqn::kVersion ? ": convert it again" : ""),
         Cause::unsupported);
  }
  return true;
}

// Runs `body`; an Error that leaves it says where it happened.
template <class Body>
static auto in_context(const std::string& context, Body body) {
  try {
    return body();
  } catch (const Error& e) {
    throw Error(e.cause, context + ": " + e.what());
  }
}

static json::Value parse_list(const File& file) {
  const std::string_view text = file.string(kTensorsKey);
  return in_context(printable(file.path()) + ": metadata key " + printable(kTensorsKey), [&] {
    json::Value list = json::parse(text);
    if (list.kind != json::Kind::object) throw Error(Cause::bad_file, "is not a JSON object");
    return list;
  });
}

static TqnMatrix read_matrix(const File& file, const PlaneFinder& finder, const std::string& name, const json::Value& entry) {
  if (file.find(name)) fail(file, "matrix " + printable(name) + " is stored twice: packed and as an ordinary tensor");
  const std::string label = printable(file.path()) + ": matrix " + printable(name);
  TqnMatrix matrix = in_context(label, [&] { return parse_entry(entry); });
  const PlaneSizes sizes = attach_planes(finder, name, matrix);
  validate(label, matrix, sizes);
  return matrix;
}

TqnTensors::TqnTensors(std::shared_ptr<const File> file) : file_(std::move(file)) {
  std::set<std::string_view> used;
  if (has_packed_tensors(*file_)) {
    const PlaneFinder finder(*file_, &used);
    const json::Value list = parse_list(*file_);
    for (const auto& [name, entry] : list.members) matrices_.emplace_back(name, read_matrix(*file_, finder, name, entry));
  }
  refuse_strays(*file_, used);
  std::sort(matrices_.begin(), matrices_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
}

const TqnMatrix* TqnTensors::find(std::string_view name) const {
  const auto at =
      std::lower_bound(matrices_.begin(), matrices_.end(), name, [](const auto& entry, std::string_view n) { return entry.first < n; });
  return at != matrices_.end() && at->first == name ? &at->second : nullptr;
}

std::span<const std::pair<std::string, TqnMatrix>> TqnTensors::all() const { return matrices_; }

}  // namespace tq::gguf
