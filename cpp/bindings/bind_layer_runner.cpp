// LayerRunner: calibration's view of the engine.
#include "bindings/bindings.h"
#include "bindings/handles.h"
#include "model/layer_runner.h"

namespace tq::bindings {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Tokens = py::array_t<int32_t, py::array::c_style>;

struct RunnerHandle {
  LayerRunner runner;
  ForkMutex mutex;
  RunnerHandle(std::shared_ptr<Model> model, int64_t seq_len) : runner(std::move(model), seq_len) {}
  template <class Body>
  void use(Body&& body) {
    py::gil_scoped_release release;
    std::lock_guard lock(mutex);
    body(runner);
  }
};

// Hands rows to Python as an array that is valid during the call.
Tap python_tap(const py::object& tap) {
  if (tap.is_none()) return {};
  return [&tap](const std::string& site, const float* x, int64_t rows, int64_t width) {
    py::gil_scoped_acquire acquire;
    const py::capsule not_owned(x, [](void*) {});
    const py::object stop = tap(site, py::array_t<float>({py::ssize_t(rows), py::ssize_t(width)}, x, not_owned));
    return stop.is(py::bool_(true));
  };
}

void expect_last(const py::array& array, const char* name, py::ssize_t dims, int64_t last) {
  if (array.ndim() == dims && array.shape(dims - 1) == last) return;
  throw Error(Cause::invalid_argument,
              std::string(name) + ": expected " + std::to_string(dims) + " dimensions, the last of " + std::to_string(last));
}

py::list input_sites(RunnerHandle& h, int64_t layer) {
  std::vector<InputSite> sites;
  h.use([&](LayerRunner& runner) { sites = runner.input_sites(layer); });
  py::list found;
  for (InputSite& site : sites) found.append(py::cast(std::move(site)));
  return found;
}

void set_matrix(RunnerHandle& h, const std::string& name, const std::optional<Floats>& w) {
  const std::span<const float> values = w ? std::span<const float>(w->data(), size_t(w->size())) : std::span<const float>();
  h.use([&](LayerRunner& runner) { runner.set_matrix(name, values); });
}

Floats embed(RunnerHandle& h, const Tokens& tokens) {
  expect_last(tokens, "tokens", 2, h.runner.seq_len());
  Floats hidden({tokens.shape(0), tokens.shape(1), py::ssize_t(h.runner.row_width())});
  const std::span<float> out(hidden.mutable_data(), size_t(hidden.size()));
  h.use([&](LayerRunner& runner) { runner.embed({tokens.data(), size_t(tokens.size())}, out); });
  return hidden;
}

// A pass of a runner, which it keeps alive.
struct PassHandle {
  std::shared_ptr<RunnerHandle> runner;
  LayerPass pass;
};

std::unique_ptr<PassHandle> enter(std::shared_ptr<RunnerHandle> h, int64_t layer, const Floats& hidden) {
  expect_last(hidden, "hidden", 3, h->runner.row_width());
  LayerPass pass = h->runner.enter(layer, {hidden.data(), size_t(hidden.size())});
  return std::make_unique<PassHandle>(PassHandle{std::move(h), std::move(pass)});
}

void run(PassHandle& h, const py::object& tap) {
  const Tap core_tap = python_tap(tap);
  h.runner->use([&](LayerRunner& runner) { runner.run(h.pass, core_tap); });
}

Floats states(const PassHandle& h) {
  const py::ssize_t width = h.runner->runner.row_width(), seq_len = h.runner->runner.seq_len();
  Floats hidden({py::ssize_t(h.pass.hidden.size()) / width / seq_len, seq_len, width});
  std::copy(h.pass.hidden.begin(), h.pass.hidden.end(), hidden.mutable_data());
  return hidden;
}

Floats layer(std::shared_ptr<RunnerHandle> h, int64_t index, const Floats& hidden, const py::object& tap) {
  const auto pass = enter(std::move(h), index, hidden);
  run(*pass, tap);
  return states(*pass);
}

Floats layer_heads(std::shared_ptr<RunnerHandle> h, int64_t index, const Floats& hidden, const py::object& heads) {
  const auto pass = enter(std::move(h), index, hidden);
  pass->runner->use([&](LayerRunner& runner) {
    runner.run_heads(pass->pass, [&](const Heads& h) {
      py::gil_scoped_acquire acquire;
      const AttentionConfig& c = h.config;
      const auto rows = [](const std::vector<float>& x, int64_t width) {
        return py::array_t<float>({py::ssize_t(x.size()) / width, py::ssize_t(width)}, x.data());
      };
      py::dict d;
      d["n_kv_heads"] = c.n_kv_heads, d["head_dim"] = c.head_dim, d["soft_cap"] = c.soft_cap, d["sinks"] = c.sinks;
      d["rope_frequencies"] = py::array_t<float>(py::ssize_t(h.frequencies.size()), h.frequencies.data());
      d["rope_magnitude"] = c.rope.magnitude, d["rope_pairs"] = c.rope.pairs;
      heads(rows(h.q, c.q_width()), rows(h.k, c.kv_width()), d);
    });
  });
  return states(*pass);
}

Floats head(RunnerHandle& h, const Floats& hidden, const py::object& tap) {
  expect_last(hidden, "hidden", 2, h.runner.row_width());
  Floats logits({hidden.shape(0), py::ssize_t(h.runner.config().n_vocab)});
  const std::span<float> out(logits.mutable_data(), size_t(logits.size()));
  const Tap core_tap = python_tap(tap);
  h.use([&](LayerRunner& runner) { runner.head({hidden.data(), size_t(hidden.size())}, out, core_tap); });
  return logits;
}

}  // namespace

void bind_layer_runner(py::module_& m) {
  py::class_<InputSite>(m, "InputSite", "One vector a token that matrices of a layer read; see _core.pyi.")
      .def_readonly("name", &InputSite::name)
      .def_readonly("group", &InputSite::group)
      .def_readonly("matrices", &InputSite::matrices)
      .def_readonly("writes_to", &InputSite::writes_to)
      .def_readonly("adds_directly", &InputSite::adds_directly);
  py::class_<RunnerHandle, std::shared_ptr<RunnerHandle>>(m, "LayerRunner", "The model one layer at a time; see _core.pyi.")
      .def(py::init([](const ModelHandle& model, int64_t seq_len) { return std::make_shared<RunnerHandle>(model.get(), seq_len); }),
           py::arg("model"), py::arg("seq_len"))
      .def("input_sites", &input_sites, py::arg("layer"))
      .def("set_matrix", &set_matrix, py::arg("name"), py::arg("w").noconvert())
      .def("embed", &embed, py::arg("tokens").noconvert())
      .def("enter", &enter, py::arg("layer"), py::arg("hidden").noconvert())
      .def("layer", &layer, py::arg("index"), py::arg("hidden").noconvert(), py::arg("tap") = py::none())
      .def("layer_heads", &layer_heads, py::arg("index"), py::arg("hidden").noconvert(), py::arg("heads"))
      .def("head", &head, py::arg("hidden").noconvert(), py::arg("tap") = py::none());
  py::class_<PassHandle>(m, "LayerPass", "Windows on their way through a layer; see _core.pyi.")
      .def("run", &run, py::arg("tap") = py::none())
      .def_property_readonly("hidden", &states);
}

}  // namespace tq::bindings
