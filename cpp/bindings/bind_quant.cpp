// Rounding weights onto codes.
#include "backend/cuda_library.h"
#include "bindings/bindings.h"
#include "common/error.h"
#include "quant/isa.h"
#include "quant/ldlq.h"
#include "quant/quant.h"

namespace tq::bindings {
namespace {

using quant::Packed;

void require_matrix(const char* what, const py::array& a) {
  if (a.ndim() != 2)
    throw Error(Cause::invalid_argument, std::string(what) + " has " + std::to_string(a.ndim()) + " dimensions, must have 2");
}

template <class T>
std::span<const T> span_of(const std::optional<Array<T>>& a) {
  return a ? std::span<const T>(a->data(), size_t(a->size())) : std::span<const T>();
}

// Called now and then on the calling thread, which waits without the GIL: lets Ctrl-C and the caller's own callback stop the work.
std::function<void(int64_t)> watcher(const std::optional<py::function>& progress) {
  return [&progress](int64_t done) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(done);
  };
}

// The encoder of a device; none: this machine's cores.
quant::BatchEncoder batch_encoder(const std::string& device) {
  if (device == "cpu") return nullptr;
  if (device != "cuda") throw Error(Cause::invalid_argument, "device is \"" + device + "\", must be \"cpu\" or \"cuda\"");
  const CudaLibrary& library = cuda_library();
  return [&library](std::span<const float> x, int k, std::span<const int8_t> codebook, std::span<uint8_t> codes) {
    library.encode(0, x.data(), int64_t(x.size()) / tqn::kTileSteps, k, codebook.data(), codes.data());
  };
}

Packed encode(const Array<float>& w, int bits, const std::optional<Array<int8_t>>& codebook, const std::optional<Array<float>>& unit_scale,
              const std::optional<Array<float>>& feedback, const std::optional<Array<int32_t>>& order, int threads,
              const std::optional<py::function>& progress, const std::string& device) {
  require_matrix("w", w);
  if (feedback) require_matrix("feedback", *feedback);
  quant::EncodeOptions options;
  options.k = bits;
  options.codebook = span_of(codebook);
  options.unit_scale = span_of(unit_scale);
  options.feedback = span_of(feedback);
  options.order = span_of(order);
  options.threads = threads;
  options.progress = watcher(progress);
  options.batch_encoder = batch_encoder(device);
  const std::span<const float> weights(w.data(), size_t(w.size()));
  const int64_t n_out = w.shape(0), n_in = w.shape(1);
  py::gil_scoped_release release;
  return quant::encode(weights, n_out, n_in, options);
}

py::array_t<float> decode(const Packed& packed, int threads) {
  py::array_t<float> out({packed.n_out, packed.n_in});
  const std::span<float> values(out.mutable_data(), size_t(out.size()));
  py::gil_scoped_release release;
  quant::decode(packed, values, threads);
  return out;
}

py::array_t<float> rotate_rows(const Array<float>& w, uint64_t seed, bool inverse, int threads) {
  require_matrix("w", w);
  py::array_t<float> out({w.shape(0), w.shape(1)});
  std::copy_n(w.data(), w.size(), out.mutable_data());
  const std::span<float> values(out.mutable_data(), size_t(out.size()));
  const int64_t rows = w.shape(0), n = w.shape(1);
  py::gil_scoped_release release;
  quant::rotate_rows(values, rows, n, seed, inverse, threads);
  return out;
}

template <class Number>
py::array_t<float> feedback(const Array<Number>& hessian, double damp, int threads) {
  require_matrix("hessian", hessian);
  const std::span<const Number> h(hessian.data(), size_t(hessian.size()));
  const int64_t n = hessian.shape(0);
  const std::optional<py::function> no_callback;
  auto u = std::make_unique<std::vector<float>>();
  {
    py::gil_scoped_release release;
    *u = quant::feedback(h, n, damp, threads, watcher(no_callback));
  }
  const float* data = u->data();
  const py::capsule owner(u.release(), [](void* p) { delete static_cast<std::vector<float>*>(p); });
  return py::array_t<float>({n, n}, data, owner);
}

// A read-only view that keeps the Packed alive.
template <class T>
py::array view(const py::object& owner, const py::dtype& type, const std::vector<T>& data) {
  py::array out(type, {data.size()}, {sizeof(T)}, data.data(), owner);
  out.attr("setflags")(py::arg("write") = false);
  return out;
}

void bind_packed(py::module_& m) {
  py::class_<Packed>(m, "Packed")
      .def_readonly("bits", &Packed::k)
      .def_readonly("n_out", &Packed::n_out)
      .def_readonly("n_in", &Packed::n_in)
      .def_readonly("scale", &Packed::scale)
      .def_readonly("squared_error", &Packed::squared_error)
      .def_property_readonly("codes", [](const py::object& o) { return view(o, py::dtype::of<uint8_t>(), o.cast<const Packed&>().codes); })
      .def_property_readonly("row_scale",
                             [](const py::object& o) { return view(o, py::dtype("float16"), o.cast<const Packed&>().row_scale); })
      .def_property_readonly("codebook",
                             [](const py::object& o) { return view(o, py::dtype::of<int8_t>(), o.cast<const Packed&>().codebook); });
}

}  // namespace

void bind_quant(py::module_& m) {
  bind_packed(m);
  const auto none = py::none();
  m.def("encode", &encode, py::arg("w").noconvert(), py::arg("bits"), py::kw_only(), py::arg("codebook").noconvert() = none,
        py::arg("unit_scale").noconvert() = none, py::arg("feedback").noconvert() = none, py::arg("order").noconvert() = none,
        py::arg("threads") = 0, py::arg("progress") = none, py::arg("device") = "cpu");
  m.def("decode", &decode, py::arg("packed"), py::arg("threads") = 0);
  m.def("feedback", &feedback<float>, py::arg("hessian").noconvert(), py::arg("damp"), py::arg("threads") = 0);
  m.def("feedback", &feedback<double>, py::arg("hessian").noconvert(), py::arg("damp"), py::arg("threads") = 0);
  m.def("rotate_rows", &rotate_rows, py::arg("w").noconvert(), py::arg("seed"), py::arg("inverse") = false, py::arg("threads") = 0);
  m.def("encoder_isa", [] { return std::string(quant::isa().name); });
}

}  // namespace tq::bindings
