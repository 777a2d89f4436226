#include "gguf/gguf.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "gguf/cursor.h"
#include "gguf/mapping.h"
#include "gguf/values.h"

namespace tq::gguf {

static constexpr uint32_t kOldestVersion = 2, kNewestVersion = 3;
static constexpr uint32_t kMaxDimensions = 4;
static constexpr uint64_t kMaxNameBytes = 63, kMaxKeyBytes = 65535;
static constexpr uint64_t kDefaultAlignment = 32, kMinAlignment = 8, kMaxAlignment = 1 << 20;

struct File::Impl {
  std::string path;
  Mapping mapping;
  std::vector<std::pair<std::string_view, Value>> metadata;
  std::vector<Tensor> tensors;
  std::vector<size_t> metadata_order, tensor_order;  // indices sorted by name
  uint64_t data_offset = 0;
  explicit Impl(const std::string& path) : path(path), mapping(path) {}
};

uint64_t Tensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), uint64_t{1}, [](uint64_t a, uint64_t b) { return a * b; });
}

// Sorted indices of the items' names: look-ups whose cost no choice of names can make worse, and duplicates side by side.
template <class Items, class NameOf>
static std::vector<size_t> sorted_by_name(const Items& items, NameOf name_of, const Cursor& cursor, const char* what) {
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return name_of(items[a]) < name_of(items[b]); });
  for (size_t i = 1; i < order.size(); i++) {
    const std::string_view name = name_of(items[order[i]]);
    if (name == name_of(items[order[i - 1]])) cursor.fail(std::string(what) + " " + printable(name) + " appears twice");
  }
  return order;
}

static std::string_view key_of(const std::pair<std::string_view, Value>& entry) { return entry.first; }
static std::string_view name_of(const Tensor& tensor) { return tensor.name; }

template <class Items, class NameOf>
static auto find_sorted(const Items& items, const std::vector<size_t>& order, NameOf name_of, std::string_view name)
    -> decltype(items.data()) {
  const auto at = std::lower_bound(order.begin(), order.end(), name, [&](size_t i, std::string_view n) { return name_of(items[i]) < n; });
  return at != order.end() && name_of(items[*at]) == name ? &items[*at] : nullptr;
}

// ---- opening: the header from front to back ----

struct Header {
  uint64_t n_tensors = 0, n_metadata = 0;
};

static Header read_header(Cursor& cursor) {
  const auto magic = cursor.take(4, "the magic number");
  if (std::string_view(reinterpret_cast<const char*>(magic.data()), 4) != "GGUF") cursor.fail("not a GGUF file: the magic number is wrong");
  const auto version = cursor.number<uint32_t>("the version");
  if (version == kNewestVersion << 24) cursor.fail("a big-endian GGUF file; only little-endian ones can be used");
  if (version < kOldestVersion || version > kNewestVersion)
    cursor.fail("GGUF version " + std::to_string(version) + " is unknown; 2 and 3 are known");
  Header header;
  header.n_tensors = cursor.number<uint64_t>("the number of tensors");
  header.n_metadata = cursor.number<uint64_t>("the number of metadata keys");
  constexpr uint64_t smallest_key = 8 + 1 + 4 + 1, smallest_tensor = 8 + 1 + 4 + 8 + 4 + 8;
  if (header.n_metadata > cursor.remaining() / smallest_key)
    cursor.fail(std::to_string(header.n_metadata) + " metadata keys do not fit the file");
  if (header.n_tensors > cursor.remaining() / smallest_tensor)
    cursor.fail(std::to_string(header.n_tensors) + " tensors do not fit the file");
  return header;
}

static std::string_view read_name(Cursor& cursor, const char* what, uint64_t limit) {
  const auto name = cursor.string(what);
  if (name.empty()) cursor.fail(std::string(what) + " is empty");
  if (name.size() > limit)
    cursor.fail(std::string(what) + " has " + std::to_string(name.size()) + " bytes; the limit is " + std::to_string(limit));
  if (!is_utf8(name)) cursor.fail(std::string(what) + " " + printable(name) + " is not UTF-8");
  return name;
}

static void read_metadata(Cursor& cursor, uint64_t count, std::vector<std::pair<std::string_view, Value>>& out) {
  for (uint64_t i = 0; i < count; i++) {  // grows with what the file really holds: no reserve by a hostile count
    cursor.set_context("metadata key " + std::to_string(i));
    const auto key = read_name(cursor, "the key", kMaxKeyBytes);
    cursor.set_context("metadata key " + printable(key));
    const auto type = cursor.number<uint32_t>("the value type");
    out.emplace_back(key, read_value(cursor, type));
  }
  cursor.set_context("");
}

struct Placed {  // a tensor whose place in the data is still to be checked
  uint64_t offset = 0, bytes = 0;
};

static std::optional<uint64_t> checked_product(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product) || product > uint64_t(INT64_MAX)) return std::nullopt;
  return product;
}

static std::vector<uint64_t> read_shape(Cursor& cursor, uint64_t* elements) {
  const auto n_dims = cursor.number<uint32_t>("the number of dimensions");
  if (n_dims < 1 || n_dims > kMaxDimensions) cursor.fail("has " + std::to_string(n_dims) + " dimensions; 1 to 4 are possible");
  std::vector<uint64_t> shape(n_dims);
  *elements = 1;
  for (uint64_t& dim : shape) {
    dim = cursor.number<uint64_t>("a dimension");
    if (dim == 0) cursor.fail("a dimension is 0");
    const auto product = checked_product(*elements, dim);
    if (!product) cursor.fail("the number of elements overflows at the dimension " + std::to_string(dim));
    *elements = *product;
  }
  return shape;
}

static Placed read_tensor(Cursor& cursor, Tensor& tensor) {
  tensor.name = read_name(cursor, "the name", kMaxNameBytes);
  cursor.set_context("tensor " + printable(tensor.name));
  uint64_t elements = 0;
  tensor.shape = read_shape(cursor, &elements);
  tensor.type = cursor.number<uint32_t>("the type");
  const TypeLayout* layout = type_layout(tensor.type);
  if (!layout) cursor.fail("unknown tensor type " + std::to_string(tensor.type));
  if (tensor.shape[0] % layout->block != 0) {
    cursor.fail("its rows of " + std::to_string(tensor.shape[0]) + " elements are not whole " + layout->name + " blocks of " +
                std::to_string(layout->block));
  }
  const auto bytes = checked_product(elements / layout->block, layout->bytes);
  if (!bytes) cursor.fail("its size in bytes overflows");
  return {cursor.number<uint64_t>("the offset"), *bytes};
}

static std::vector<Placed> read_tensors(Cursor& cursor, uint64_t count, std::vector<Tensor>& out) {
  std::vector<Placed> places;
  for (uint64_t i = 0; i < count; i++) {
    cursor.set_context("tensor " + std::to_string(i));
    places.push_back(read_tensor(cursor, out.emplace_back()));
  }
  cursor.set_context("");
  return places;
}

static uint64_t checked_alignment(const Cursor& cursor, uint64_t alignment) {
  const bool power_of_two = (alignment & (alignment - 1)) == 0;
  if (alignment < kMinAlignment || alignment > kMaxAlignment || !power_of_two) {
    cursor.fail("general.alignment is " + std::to_string(alignment) + "; a power of two from 8 to 1048576 is possible");
  }
  return alignment;
}

static void place_tensors(Cursor& cursor, std::span<const uint8_t> file, uint64_t data_offset, uint64_t alignment,
                          const std::vector<Placed>& places, std::vector<Tensor>& tensors) {
  const auto data = file.subspan(data_offset);
  for (size_t i = 0; i < tensors.size(); i++) {
    const Placed& place = places[i];
    cursor.set_context("tensor " + printable(tensors[i].name));
    if (place.offset % alignment != 0) {
      cursor.fail("its offset " + std::to_string(place.offset) + " is not a multiple of the alignment " + std::to_string(alignment));
    }
    if (place.offset > data.size() || place.bytes > data.size() - place.offset) {
      cursor.fail("its " + std::to_string(place.bytes) + " bytes at offset " + std::to_string(place.offset) +
                  " reach past the end of the data (" + std::to_string(data.size()) + " bytes): the file is truncated or damaged");
    }
    tensors[i].offset = data_offset + place.offset;
    tensors[i].data = data.subspan(place.offset, place.bytes);
  }
  cursor.set_context("");
}

static void refuse_overlaps(const Cursor& cursor, const std::vector<Tensor>& tensors) {
  std::vector<const Tensor*> by_place;
  for (const Tensor& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const Tensor* a, const Tensor* b) { return a->data.data() < b->data.data(); });
  for (size_t i = 1; i < by_place.size(); i++) {
    const Tensor &a = *by_place[i - 1], &b = *by_place[i];
    if (a.data.data() + a.data.size() > b.data.data())
      cursor.fail("the data of tensors " + printable(a.name) + " and " + printable(b.name) + " overlap");
  }
}

std::shared_ptr<const File> File::open(const std::string& path) {
  std::shared_ptr<File> file(new File(std::make_unique<Impl>(path)));
  Impl& impl = *file->impl_;
  Cursor cursor(impl.path, impl.mapping.bytes());
  const Header header = read_header(cursor);
  read_metadata(cursor, header.n_metadata, impl.metadata);
  impl.metadata_order = sorted_by_name(impl.metadata, key_of, cursor, "metadata key");
  const auto places = read_tensors(cursor, header.n_tensors, impl.tensors);
  impl.tensor_order = sorted_by_name(impl.tensors, name_of, cursor, "tensor");

  const uint64_t alignment = checked_alignment(cursor, file->u64("general.alignment", kDefaultAlignment));
  const uint64_t size = impl.mapping.bytes().size();
  impl.data_offset =
      std::min((cursor.offset() + alignment - 1) / alignment * alignment, size);  // a file without tensors may lack the padding
  place_tensors(cursor, impl.mapping.bytes(), impl.data_offset, alignment, places, impl.tensors);
  refuse_overlaps(cursor, impl.tensors);
  return file;
}

// ---- access ----

File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::~File() = default;
const std::string& File::path() const { return impl_->path; }
uint64_t File::size() const { return impl_->mapping.bytes().size(); }
uint64_t File::data_offset() const { return impl_->data_offset; }
std::span<const Tensor> File::tensors() const { return impl_->tensors; }
std::span<const std::pair<std::string_view, Value>> File::metadata() const { return impl_->metadata; }
void File::prefetch() const { impl_->mapping.prefetch(); }
bool File::lock() const { return impl_->mapping.lock(); }

const Tensor* File::find(std::string_view name) const { return find_sorted(impl_->tensors, impl_->tensor_order, name_of, name); }

const Value* File::get(std::string_view key) const {
  const auto* entry = find_sorted(impl_->metadata, impl_->metadata_order, key_of, key);
  return entry ? &entry->second : nullptr;
}

[[noreturn]] static void fail_key(const File& file, std::string_view key, const std::string& why) {
  throw Error(Cause::bad_file, printable(file.path()) + ": metadata key " + printable(key) + " " + why);
}

static const Value& required(const File& file, std::string_view key) {
  const Value* value = file.get(key);
  if (!value) fail_key(file, key, "is missing");
  return *value;
}

static uint64_t as_u64(const File& file, std::string_view key, const Value& value) {
  if (const auto* number = std::get_if<uint64_t>(&value.data)) return *number;
  if (const auto* flag = std::get_if<bool>(&value.data)) return *flag;
  const auto* number = std::get_if<int64_t>(&value.data);
  if (!number) fail_key(file, key, "is not an integer");
  if (*number < 0) fail_key(file, key, "is negative: " + std::to_string(*number));
  return uint64_t(*number);
}

uint64_t File::u64(std::string_view key) const { return as_u64(*this, key, required(*this, key)); }
uint64_t File::u64(std::string_view key, uint64_t fallback) const { return get(key) ? u64(key) : fallback; }

double File::f64(std::string_view key) const {
  const auto* number = std::get_if<double>(&required(*this, key).data);
  if (!number) fail_key(*this, key, "is not a floating-point number");
  if (!std::isfinite(*number)) fail_key(*this, key, "is not finite");
  return *number;
}
double File::f64(std::string_view key, double fallback) const { return get(key) ? f64(key) : fallback; }

bool File::boolean(std::string_view key, bool fallback) const {
  const Value* value = get(key);
  if (!value) return fallback;
  const auto* flag = std::get_if<bool>(&value->data);
  if (!flag) fail_key(*this, key, "is not a boolean");
  return *flag;
}

std::string_view File::string(std::string_view key) const {
  const auto* text = std::get_if<std::string_view>(&required(*this, key).data);
  if (!text) fail_key(*this, key, "is not a string");
  return *text;
}
std::string_view File::string(std::string_view key, std::string_view fallback) const { return get(key) ? string(key) : fallback; }

std::vector<uint64_t> File::u64s(std::string_view key) const {
  const Value* value = get(key);
  if (!value) return {};
  const auto* array = std::get_if<Array>(&value->data);
  if (!array) return {as_u64(*this, key, *value)};
  std::vector<uint64_t> numbers;
  for (const Value& element : elements_of(*array)) numbers.push_back(as_u64(*this, key, element));
  return numbers;
}

std::vector<std::string_view> File::strings(std::string_view key) const {
  const Value* value = get(key);
  if (!value) return {};
  const auto* array = std::get_if<Array>(&value->data);
  if (!array || array->element != ValueType::string) fail_key(*this, key, "is not an array of strings");
  std::vector<std::string_view> texts;
  for (const Value& element : elements_of(*array)) texts.push_back(std::get<std::string_view>(element.data));
  return texts;
}

}  // namespace tq::gguf
