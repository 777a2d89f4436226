#include <pybind11/stl/filesystem.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/gguf_file.h"
#include "common/error.h"
#include "common/parallel.h"
#include "common/text.h"
#include "kernels/kernels.h"
#include "model/architectures.h"
#include "model/graph.h"
#include "model/state.h"

namespace tq::bindings {

using gguf::ValueType;

// ---- metadata as Python values ----

// Token texts of some models are no valid UTF-8: surrogate escapes keep their bytes.
static py::object text(std::string_view s) {
  PyObject* decoded = PyUnicode_DecodeUTF8(s.data(), Py_ssize_t(s.size()), "surrogateescape");
  if (!decoded) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(decoded);
}

static py::object to_python(const gguf::Value& value);

static py::list to_list(const gguf::Array& array) {
  const auto elements = gguf::elements_of(array);
  py::list list(elements.size());
  for (size_t i = 0; i < elements.size(); i++) list[i] = to_python(elements[i]);
  return list;
}

static py::object to_python(const gguf::Value& value) {
  struct Visitor {
    py::object operator()(uint64_t v) const { return py::int_(v); }
    py::object operator()(int64_t v) const { return py::int_(v); }
    py::object operator()(double v) const { return py::float_(v); }
    py::object operator()(bool v) const { return py::bool_(v); }
    py::object operator()(std::string_view v) const { return text(v); }
    py::object operator()(const gguf::Array& v) const { return to_list(v); }
  };
  return std::visit(Visitor{}, value.data);
}

GgufFile::GgufFile(std::shared_ptr<const gguf::File> file, bool validate) : file_(std::move(file)) {
  if (validate) packed_ = std::make_unique<gguf::TqnTensors>(file_);
}

const gguf::TqnTensors& GgufFile::packed() {
  if (!packed_) packed_ = std::make_unique<gguf::TqnTensors>(file_);
  return *packed_;
}

py::dict GgufFile::metadata() {
  if (!metadata_) {
    py::dict dict;
    for (const auto& [key, value] : file_->metadata()) dict[text(key)] = to_python(value);
    metadata_ = std::move(dict);
  }
  return *metadata_;
}

// ---- tensors as arrays ----

static const gguf::Tensor& tensor_named(const gguf::File& file, const std::string& name) {
  const gguf::Tensor* tensor = file.find(name);
  if (!tensor) throw Error(Cause::invalid_argument, printable(file.path()) + " has no tensor " + printable(name));
  return *tensor;
}

static std::vector<py::ssize_t> numpy_shape(const gguf::Tensor& tensor) { return {tensor.shape.rbegin(), tensor.shape.rend()}; }

static py::dtype numpy_type(uint32_t type) {
  switch (type) {
    case gguf::kF32:
      return py::dtype("float32");
    case gguf::kF16:
      return py::dtype("float16");
    case gguf::kBF16:
      return py::dtype("uint16");
    case gguf::kI8:
      return py::dtype("int8");
    case gguf::kI16:
      return py::dtype("int16");
    case gguf::kI32:
      return py::dtype("int32");
    case gguf::kI64:
      return py::dtype("int64");
    case gguf::kF64:
      return py::dtype("float64");
    default:
      return py::dtype("uint8");  // the bytes of a foreign quantization
  }
}

static py::array data(const std::shared_ptr<GgufFile>& self, const std::string& name) {
  const gguf::Tensor& tensor = tensor_named(self->file(), name);
  std::vector<py::ssize_t> shape = numpy_shape(tensor);
  const gguf::TypeLayout& layout = *gguf::type_layout(tensor.type);
  if (layout.block > 1) shape.back() = shape.back() / layout.block * layout.bytes;
  py::array view(numpy_type(tensor.type), shape, tensor.data.data(), py::cast(self));
  py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return view;
}

static py::list tensors(const GgufFile& self) {
  py::list list;
  for (const gguf::Tensor& tensor : self.file().tensors()) {
    list.append(py::make_tuple(text(tensor.name), tensor.type, py::tuple(py::cast(numpy_shape(tensor)))));
  }
  return list;
}

static py::list places(const GgufFile& self) {
  py::list list;
  for (const gguf::Tensor& tensor : self.file().tensors())
    list.append(py::make_tuple(text(tensor.name), tensor.offset, tensor.data.size()));
  return list;
}

// Floats in which a mixture works for one token: for each expert that the token uses its input, gate and up, its output, and the forms of
// input and hidden values as bytes. They are scratch, which the layers share.
static int64_t expert_floats(const FeedForward& part, int64_t n_embd) {
  const auto* parallel = std::get_if<ParallelConfig>(&part);
  const auto* e = parallel ? &parallel->experts : std::get_if<ExpertsConfig>(&part);
  if (!e) return 0;
  const int64_t n_ff = std::max(e->n_ff, e->n_ff_shared);
  return (e->n_used + (e->n_ff_shared > 0)) * (2 * n_embd + 2 * n_ff + (n_embd + n_ff + 3) / 4);
}

// (n_kv_heads, head_dim, window) of each layer, as the engine reads them.
static py::list attention_layers(const GgufFile& self) {
  py::list layers;
  for (const LayerConfig& layer : read_config(self.file()).layers)
    if (const auto* a = std::get_if<AttentionConfig>(&layer.mixer); a && a->kv_layer < 0)
      layers.append(py::make_tuple(a->n_kv_heads, a->head_dim, a->window));
  return layers;
}

static std::vector<int64_t> layers_with_codes(const GgufFile& self) {
  std::vector<int64_t> found;
  const std::vector<LayerConfig> layers = read_config(self.file()).layers;
  for (size_t i = 0; i < layers.size(); i++)
    if (const auto* a = std::get_if<AttentionConfig>(&layers[i].mixer); a && may_keep_codes(*a)) found.push_back(int64_t(i));
  return found;
}

// Of a context with one slot, on one device.
static py::dict context_memory(const GgufFile& self, int64_t n_ctx, const std::string& cache) {
  if (n_ctx < 0 || n_ctx > INT32_MAX) throw Error(Cause::invalid_argument, "n_ctx: " + std::to_string(n_ctx));
  const Config c = read_config(self.file());
  const CacheElements types = elements_of(parse_cache(cache));
  int64_t positions = 0, recurrent = 0, experts = 0;
  for (const LayerConfig& layer : c.layers) {
    const StateShape shape = state_shape(layer, types);
    (std::holds_alternative<RecurrentState>(shape) ? recurrent : positions) += slot_bytes(shape, n_ctx);
    experts = std::max(experts, expert_floats(layer.feed_forward, c.n_embd));
  }
  py::dict d;
  d["positions"] = positions, d["recurrent"] = recurrent, d["row"] = plane_floats(c) * int64_t(sizeof(float));
  d["expert_row"] = experts * int64_t(sizeof(float));
  return d;
}

static py::dict quantized(GgufFile& self) {
  py::dict all;
  for (const auto& [name, m] : self.packed().all()) {
    py::dict entry;
    entry["bits"] = m.k;
    entry["n_out"] = m.n_out;
    entry["n_in"] = m.n_in;
    entry["scale"] = m.scale;
    entry["rotation"] = m.rotation == Rotation::none ? "none" : "hartley-hadamard";
    entry["seed"] = m.seed;
    entry["outliers"] = m.outliers.count;
    all[text(name)] = entry;
  }
  return all;
}

// ---- dequantization ----

struct Rows {  // of a matrix; decode(row, out) may be called from several threads
  int64_t n_out = 0, n_in = 0;
  std::function<void(int64_t, float*)> decode;
};

static Rows packed_rows(const TqnMatrix& m) {
  kernels::RotationPlan plan;
  if (m.rotation != Rotation::none) plan = kernels::RotationPlan::make(m.n_in, m.seed);
  return {m.n_out, m.n_in,
          [&m, plan](int64_t row, float* out) { kernels::kernels().tqn_row(m, m.rotation == Rotation::none ? nullptr : &plan, row, out); }};
}

static kernels::DType dense_type(const gguf::File& file, const gguf::Tensor& tensor) {
  switch (tensor.type) {
    case gguf::kF32:
      return kernels::DType::f32;
    case gguf::kF16:
      return kernels::DType::f16;
    case gguf::kBF16:
      return kernels::DType::bf16;
    default:
      break;
  }
  throw Error(Cause::unsupported, printable(file.path()) + ": tensor " + printable(tensor.name) + " has the type " +
                                      gguf::type_layout(tensor.type)->name + "; F32, F16, BF16 and packed matrices can be decoded");
}

static Rows dense_rows(const gguf::File& file, const gguf::Tensor& tensor) {
  const int64_t n_in = int64_t(tensor.shape[0]), n_out = int64_t(tensor.elements()) / n_in;
  const kernels::DenseMatrix matrix{dense_type(file, tensor), n_out, n_in, tensor.data.data()};
  return {n_out, n_in, [matrix](int64_t row, float* out) { kernels::kernels().dense_row(matrix, row, out); }};
}

static void decode_rows(const Rows& rows, int64_t first, int64_t last, float* out) {
  const int64_t chunk = std::max<int64_t>(1, (1 << 16) / rows.n_in);  // rows; enough work to be worth a thread
  Progress progress;
  parallel_for((last - first + chunk - 1) / chunk, 0, progress, [&](int64_t item, int) {
    const int64_t begin = first + item * chunk;
    for (int64_t row = begin; row < std::min(begin + chunk, last); row++) rows.decode(row, out + (row - first) * rows.n_in);
  });
}

static py::array_t<float> dequantize(GgufFile& self, const std::string& name, std::optional<std::pair<int64_t, int64_t>> range) {
  const TqnMatrix* packed = self.packed().find(name);
  const Rows rows = packed ? packed_rows(*packed) : dense_rows(self.file(), tensor_named(self.file(), name));
  const auto [first, last] = range.value_or(std::pair<int64_t, int64_t>{0, rows.n_out});
  if (first < 0 || first > last || last > rows.n_out) {
    throw Error(Cause::invalid_argument, "rows " + std::to_string(first) + " to " + std::to_string(last) + " of " + printable(name) +
                                             ", which has " + std::to_string(rows.n_out));
  }
  py::array_t<float> out({last - first, rows.n_in});
  float* values = out.mutable_data();
  py::gil_scoped_release release;
  decode_rows(rows, first, last, values);
  return out;
}

void bind_gguf(py::module_& m) {
  py::class_<GgufFile, std::shared_ptr<GgufFile>>(m, "GgufFile")
      .def(py::init([](const std::filesystem::path& path, bool validate) {
             py::gil_scoped_release release;
             return std::make_shared<GgufFile>(gguf::File::open(path.string()), validate);
           }),
           py::arg("path"), py::kw_only(), py::arg("validate") = true)
      .def_property_readonly("path", [](const GgufFile& self) { return std::filesystem::path(self.file().path()).string(); })
      .def_property_readonly("size", [](const GgufFile& self) { return self.file().size(); })
      .def_property_readonly("data_offset", [](const GgufFile& self) { return self.file().data_offset(); })
      .def_property_readonly("metadata", &GgufFile::metadata)
      .def("attention_layers", &attention_layers)
      .def("layers_with_codes", &layers_with_codes)
      .def("context_memory", &context_memory, py::arg("n_ctx"), py::arg("cache"))
      .def("tensors", &tensors)
      .def("places", &places)
      .def("data", &data, py::arg("name"))
      .def("quantized", &quantized)
      .def("dequantize", &dequantize, py::arg("name"), py::arg("rows") = py::none());
}

}  // namespace tq::bindings
