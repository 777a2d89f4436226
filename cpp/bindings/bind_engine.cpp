// Model, Context, Sampler, and what this machine can do. Every pass runs without the GIL; objects may be used and closed from any thread.
#include <map>
#include <mutex>

#include "bindings/bindings.h"
#include "bindings/handles.h"
#include "common/cpu_count.h"
#include "common/error.h"
#include "kernels/kernels.h"
#include "model/architectures.h"
#include "model/model.h"
#include "model/sampler.h"

namespace tq::bindings {

constexpr std::pair<const char*, CacheType> kCacheTypes[] = {
    {"auto", CacheType::automatic}, {"f16", CacheType::f16},   {"f32", CacheType::f32},  {"k8v8", CacheType::k8v8},
    {"k8v4", CacheType::k8v4},      {"k4v8", CacheType::k4v8}, {"k4v4", CacheType::k4v4}};

CacheType parse_cache(const std::string& name) {
  for (const auto& [known, type] : kCacheTypes)
    if (name == known) return type;
  throw Error(Cause::invalid_argument, "cache: \"" + name + "\" is not one of auto, f16, f32, k8v8, k8v4, k4v8, k4v4");
}

namespace {

Precision parse_precision(const std::string& name) {
  if (name == "int8") return Precision::int8;
  if (name == "f32") return Precision::f32;
  throw Error(Cause::invalid_argument, "precision: \"" + name + "\" is not \"int8\" or \"f32\"");
}

std::unique_ptr<ModelHandle> open_model(const std::string& path, const std::string& device, int threads, const std::string& precision,
                                        bool lock_memory, int main_device) {
  ModelOptions options;
  options.device = device;
  options.backend = {threads, main_device, parse_precision(precision)};
  options.lock_memory = lock_memory;
  std::shared_ptr<Model> model;
  {
    py::gil_scoped_release release;
    model = Model::open(path, options);
  }
  return std::make_unique<ModelHandle>(std::move(model));
}

void describe(py::dict& d, const AttentionConfig& a) {
  d["mixer"] = "attention";
  d["n_heads"] = a.n_heads, d["n_kv_heads"] = a.n_kv_heads, d["head_dim"] = a.head_dim, d["window"] = a.window;
  d["rope_base"] = a.rope.base, d["rope_dims"] = a.rope.dims;
  if (a.kv_layer >= 0) d["kv_layer"] = a.kv_layer;
  d["keeps_codes"] = may_keep_codes(a);
}
void describe(py::dict& d, const DeltaNetConfig& n) {
  d["mixer"] = "delta_net";
  d["n_key_heads"] = n.n_key_heads, d["n_value_heads"] = n.n_value_heads, d["key_dim"] = n.key_dim, d["value_dim"] = n.value_dim;
  d["state_bytes"] = n.state_floats() * int64_t(sizeof(float));
}
void describe(py::dict& d, const GatedConfig& f) { d["feed_forward"] = "gated", d["n_ff"] = f.n_ff; }
void describe(py::dict& d, const ExpertsConfig& e) {
  d["feed_forward"] = "experts", d["n_ff"] = e.n_ff;
  d["n_experts"] = e.n_experts, d["n_experts_used"] = e.n_used, d["n_ff_shared"] = e.n_ff_shared;
}
void describe(py::dict& d, const ParallelConfig& f) {
  describe(d, f.experts);
  d["feed_forward"] = "gated and experts", d["n_ff"] = f.gated.n_ff, d["n_ff_experts"] = f.experts.n_ff;
}

py::dict config_dict(const Config& c) {
  py::list layers;
  for (const LayerConfig& layer : c.layers) {
    py::dict d;
    std::visit([&](const auto& mixer) { describe(d, mixer); }, layer.mixer);
    std::visit([&](const auto& feed_forward) { describe(d, feed_forward); }, layer.feed_forward);
    layers.append(d);
  }
  py::dict d;
  d["architecture"] = c.architecture;
  d["n_layers"] = c.n_layers(), d["n_embd"] = c.n_embd, d["n_vocab"] = c.n_vocab, d["n_ctx_train"] = c.n_ctx_train;
  d["norm_eps"] = c.norm_eps, d["n_embd_layer"] = c.n_embd_layer;
  d["layers"] = layers;
  return d;
}

using IntArray = py::array_t<int32_t, py::array::c_style>;

std::span<const int32_t> ints(const char* name, const IntArray& array) {
  if (array.ndim() != 1)
    throw Error(Cause::invalid_argument, std::string(name) + ": " + std::to_string(array.ndim()) + " dimensions, expected 1");
  return {array.data(), size_t(array.size())};
}

Batch batch_of(const IntArray& tokens, const IntArray& positions, const IntArray& slots, const IntArray& output_rows) {
  return {ints("tokens", tokens), ints("positions", positions), ints("slots", slots), ints("output_rows", output_rows)};
}

py::array_t<float> matrix(size_t rows, int64_t width) { return py::array_t<float>({py::ssize_t(rows), py::ssize_t(width)}); }
std::span<float> floats(py::array_t<float>& array) { return {array.mutable_data(), size_t(array.size())}; }

py::array_t<float> forward(ContextHandle& handle, const IntArray& tokens, const IntArray& positions, const IntArray& slots,
                           const IntArray& output_rows) {
  const Batch batch = batch_of(tokens, positions, slots, output_rows);
  auto logits = matrix(batch.output_rows.size(), handle.n_vocab);
  const auto out = floats(logits);
  handle.use([&](Context& context) { context.forward(batch, out); });
  return logits;
}

py::array_t<float> embed(ContextHandle& handle, const IntArray& tokens, const IntArray& positions, const IntArray& slots,
                         const IntArray& output_rows) {
  const Batch batch = batch_of(tokens, positions, slots, output_rows);
  auto hidden = matrix(batch.output_rows.size(), handle.n_embd);
  const auto out = floats(hidden);
  handle.use([&](Context& context) { context.embed(batch, out); });
  return hidden;
}

py::array_t<Candidate> forward_best(ContextHandle& handle, const IntArray& tokens, const IntArray& positions, const IntArray& slots,
                                    const IntArray& output_rows) {
  const Batch batch = batch_of(tokens, positions, slots, output_rows);
  py::array_t<Candidate> best({py::ssize_t(batch.output_rows.size()), py::ssize_t(kMaxCandidates)});
  const std::span<Candidate> out(best.mutable_data(), size_t(best.size()));
  handle.use([&](Context& context) { context.forward_best(batch, out); });
  return best;
}

py::array_t<float> read_logits(ContextHandle& handle, int64_t row) {
  py::array_t<float> logits(handle.n_vocab);
  const auto out = floats(logits);
  handle.use([&](Context& context) { context.read_logits(row, out); });
  return logits;
}

enum class Wanted { last, all, none };

Wanted parse_wanted(const std::string& name) {
  if (name == "last") return Wanted::last;
  if (name == "all") return Wanted::all;
  if (name == "none") return Wanted::none;
  throw Error(Cause::invalid_argument, "logits: \"" + name + "\" is not \"last\", \"all\" or \"none\"");
}

// Tokens of one slot, cut into batches; forward(batch) runs each.
template <class Forward>
void eval_batches(const Context& context, std::span<const int32_t> tokens, int64_t position, int32_t slot, Wanted wanted,
                  Forward&& forward) {
  const size_t n_batch = size_t(context.n_batch());
  std::vector<int32_t> positions, rows;
  for (size_t first = 0; first < tokens.size(); first += n_batch) {
    const size_t n = std::min(n_batch, tokens.size() - first);
    positions.resize(n), rows.clear();
    for (size_t i = 0; i < n; i++) {
      positions[i] = int32_t(position + int64_t(first + i));
      if (wanted == Wanted::all || (wanted == Wanted::last && first + i + 1 == tokens.size())) rows.push_back(int32_t(i));
    }
    const std::vector<int32_t> slots(n, slot);
    forward(Batch{tokens.subspan(first, n), positions, slots, rows});
  }
}

// Before anything runs, so that an overlong prompt leaves the cache as it was.
std::span<const int32_t> tokens_that_fit(const ContextHandle& handle, const IntArray& tokens, int64_t position) {
  const auto span = ints("tokens", tokens);
  if (span.empty()) throw Error(Cause::invalid_argument, "tokens: empty");
  if (position < 0 || position > handle.n_ctx - int64_t(span.size()))
    throw Error(Cause::invalid_argument, "position " + std::to_string(position) + " and " + std::to_string(span.size()) +
                                             " tokens do not fit n_ctx " + std::to_string(handle.n_ctx));
  return span;
}

py::array_t<float> eval(ContextHandle& handle, const IntArray& tokens, int64_t position, int32_t slot, const std::string& logits) {
  const Wanted wanted = parse_wanted(logits);
  const auto span = tokens_that_fit(handle, tokens, position);
  py::array_t<float> out = wanted == Wanted::all    ? matrix(span.size(), handle.n_vocab)
                           : wanted == Wanted::last ? py::array_t<float>(handle.n_vocab)
                                                    : py::array_t<float>(0);
  float* data = out.mutable_data();
  handle.use([&](Context& context) {
    eval_batches(context, span, position, slot, wanted, [&](const Batch& batch) {
      const size_t values = batch.output_rows.size() * size_t(handle.n_vocab);
      context.forward(batch, {data, values});
      data += values;
    });
  });
  return out;
}

py::array_t<Candidate> eval_best(ContextHandle& handle, const IntArray& tokens, int64_t position, int32_t slot) {
  const auto span = tokens_that_fit(handle, tokens, position);
  py::array_t<Candidate> best(kMaxCandidates);
  Candidate* const out = best.mutable_data();
  handle.use([&](Context& context) {
    eval_batches(context, span, position, slot, Wanted::last,
                 [&](const Batch& batch) { context.forward_best(batch, {out, batch.output_rows.size() * size_t(kMaxCandidates)}); });
  });
  return best;
}

int64_t held_positions(ContextHandle& handle, int64_t slot) {
  int64_t n = 0;
  handle.use([&](Context& context) { n = context.positions(slot); });
  return n;
}

std::shared_ptr<Snapshot> snapshot(ContextHandle& handle, int64_t slot) {
  std::shared_ptr<Snapshot> taken;
  handle.use([&](Context& context) { taken = context.snapshot(slot); });
  return taken;
}

py::bytes save(ContextHandle& handle, int64_t slot, int64_t n) {
  std::vector<uint8_t> state;
  handle.use([&](Context& context) { state = context.save(slot, n); });
  return py::bytes(reinterpret_cast<const char*>(state.data()), state.size());
}

void load(ContextHandle& handle, int64_t slot, const py::bytes& state) {
  const std::string_view view = state;
  handle.use([&](Context& context) { context.load(slot, {reinterpret_cast<const uint8_t*>(view.data()), view.size()}); });
}

py::bytes convert(ContextHandle& handle, const py::bytes& state, int64_t n, const std::string& cache) {
  const std::string_view view = state;
  const CacheType type = parse_cache(cache);
  std::vector<uint8_t> converted;
  handle.use([&](Context& context) { converted = context.convert({reinterpret_cast<const uint8_t*>(view.data()), view.size()}, n, type); });
  return py::bytes(reinterpret_cast<const char*>(converted.data()), converted.size());
}

std::string cache_name(CacheType type) {
  for (const auto& [name, known] : kCacheTypes)
    if (known == type) return name;
  throw Error(Cause::invalid_argument, "cache type " + std::to_string(int(type)));
}

int64_t state_bytes(ContextHandle& handle, int64_t n) {
  int64_t bytes = 0;
  handle.use([&](Context& context) { bytes = context.state_bytes(n); });
  return bytes;
}

py::dict profile(ContextHandle& handle, bool on) {
  std::map<std::string, double> seconds;
  handle.use([&](Context& context) {
    for (const Part& part : context.model().parts())
      for (const auto& [kind, time] : part.backend->profile(on)) seconds[kind] += time;
  });
  return py::cast(seconds);
}

// A sampler remembers its random numbers' state and its working memory: one call at a time.
struct SamplerHandle {
  explicit SamplerHandle(const SamplerOptions& options) : sampler(options) {}
  Sampler sampler;
  ForkMutex mutex;
  template <class Body>
  void use(Body&& body) {
    py::gil_scoped_release release;
    std::lock_guard lock(mutex);
    body(sampler);
  }
};

int32_t sample(SamplerHandle& handle, const py::array_t<float, py::array::c_style>& logits,
               const py::array_t<int32_t, py::array::c_style | py::array::forcecast>& history) {
  if (logits.ndim() != 1) throw Error(Cause::invalid_argument, "logits: " + std::to_string(logits.ndim()) + " dimensions, expected 1");
  const std::span<const float> values(logits.data(), size_t(logits.size()));
  const std::span<const int32_t> tokens(history.data(), size_t(history.size()));
  int32_t chosen = 0;
  handle.use([&](Sampler& sampler) { chosen = sampler.sample(values, tokens); });
  return chosen;
}

int32_t sample_best(SamplerHandle& handle, const py::array_t<Candidate, py::array::c_style>& best) {
  if (best.ndim() != 1) throw Error(Cause::invalid_argument, "best: " + std::to_string(best.ndim()) + " dimensions, expected 1");
  const std::span<const Candidate> candidates(best.data(), size_t(best.size()));
  int32_t chosen = 0;
  handle.use([&](Sampler& sampler) { chosen = sampler.sample_best(candidates); });
  return chosen;
}

int needed_candidates(SamplerHandle& handle, int64_t n_vocab) {
  int needed = 0;
  handle.use([&](Sampler& sampler) { needed = sampler.needed_candidates(n_vocab); });
  return needed;
}

std::unique_ptr<SamplerHandle> make_sampler(float temperature, int top_k, float top_p, float min_p, float typical_p, float repeat_penalty,
                                            float frequency_penalty, float presence_penalty, int penalty_last_n, uint64_t seed) {
  const SamplerOptions options{temperature,      top_k,          top_p, min_p, typical_p, repeat_penalty, frequency_penalty,
                               presence_penalty, penalty_last_n, seed};
  return std::make_unique<SamplerHandle>(options);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const kernels::Kernels* k : kernels::all_kernels()) names.emplace_back(k->isa);
  return names;
}

py::dict backends() {
  py::dict d;
  d["cpu"] = "available: " + std::string(kernels::kernels().isa) + ", " + std::to_string(cpu_count()) + " cores";
  d["cuda"] = cuda_status(), d["metal"] = metal_status();
  return d;
}

void bind_model(py::module_& m) {
  py::class_<ModelHandle>(m, "Model", "A model file, opened on a device; see _core.pyi.")
      .def(py::init(&open_model), py::arg("path"), py::kw_only(), py::arg("device") = "cpu", py::arg("threads") = 0,
           py::arg("precision") = "int8", py::arg("lock_memory") = false, py::arg("main_device") = 0)
      .def_property_readonly("file", &ModelHandle::file)
      .def_property_readonly("config", [](const ModelHandle& h) { return config_dict(h.get()->config()); })
      .def_property_readonly("backend", [](const ModelHandle& h) { return h.get()->backend_names(); })
      .def_property_readonly("parameters", [](const ModelHandle& h) { return h.get()->parameters(); })
      .def_property_readonly("weight_bytes", [](const ModelHandle& h) { return h.get()->weight_bytes(); })
      .def("close", &ModelHandle::close);
}

void bind_context(py::module_& m) {
  const auto make = [](const ModelHandle& model, int64_t n_ctx, int64_t n_slots, int64_t n_batch, const std::string& cache) {
    std::shared_ptr<Model> shared = model.get();
    const ContextOptions options{n_ctx, n_slots, n_batch, parse_cache(cache)};
    py::gil_scoped_release release;
    return std::make_unique<ContextHandle>(std::make_unique<Context>(std::move(shared), options));
  };
  py::arg tokens("tokens"), positions("positions"), slots("slots"), output_rows("output_rows");
  py::class_<Snapshot, std::shared_ptr<Snapshot>>(m, "Snapshot", "A moment of a slot of a Context; see _core.pyi.")
      .def_readonly("slot", &Snapshot::slot)
      .def_readonly("positions", &Snapshot::positions)
      .def_readonly("intact", &Snapshot::intact)
      .def_property_readonly("memory_bytes", &Snapshot::bytes);
  py::class_<ContextHandle>(m, "Context", "The memory of running sequences; see _core.pyi.")
      .def(py::init(make), py::arg("model"), py::kw_only(), py::arg("n_ctx") = 0, py::arg("n_slots") = 1, py::arg("n_batch") = 512,
           py::arg("cache") = "auto")
      .def_readonly("n_ctx", &ContextHandle::n_ctx)
      .def_readonly("n_slots", &ContextHandle::n_slots)
      .def_readonly("n_batch", &ContextHandle::n_batch)
      .def_readonly("n_vocab", &ContextHandle::n_vocab)
      .def_readonly("n_embd", &ContextHandle::n_embd)
      .def_property_readonly("cache",
                             [](ContextHandle& h) {
                               CacheType type{};
                               h.use([&](Context& context) { type = context.cache(); });
                               return cache_name(type);
                             })
      .def_property_readonly("memory_bytes",
                             [](ContextHandle& h) {
                               int64_t bytes = 0;
                               h.use([&](Context& context) { bytes = context.memory_bytes(); });
                               return bytes;
                             })
      .def("forward", &forward, tokens.noconvert(), positions.noconvert(), slots.noconvert(), output_rows.noconvert())
      .def("forward_best", &forward_best, tokens.noconvert(), positions.noconvert(), slots.noconvert(), output_rows.noconvert())
      .def("read_logits", &read_logits, py::arg("row") = 0)
      .def("embed", &embed, tokens.noconvert(), positions.noconvert(), slots.noconvert(), output_rows.noconvert())
      .def("eval", &eval, tokens.noconvert(), py::arg("position"), py::arg("slot") = 0, py::arg("logits") = "last")
      .def("eval_best", &eval_best, tokens.noconvert(), py::arg("position"), py::arg("slot") = 0)
      .def("positions", &held_positions, py::arg("slot") = 0)
      .def(
          "rewind", [](ContextHandle& h, int64_t slot, int64_t n) { h.use([&](Context& context) { context.rewind(slot, n); }); },
          py::arg("slot"), py::arg("n"))
      .def("snapshot", &snapshot, py::arg("slot"))
      .def(
          "restore",
          [](ContextHandle& h, int64_t slot, const Snapshot& from) { h.use([&](Context& context) { context.restore(slot, from); }); },
          py::arg("slot"), py::arg("snapshot"))
      .def("save", &save, py::arg("slot"), py::arg("n"))
      .def("load", &load, py::arg("slot"), py::arg("state"))
      .def("convert", &convert, py::arg("state"), py::arg("n"), py::arg("cache"))
      .def("state_bytes", &state_bytes, py::arg("n"))
      .def(
          "release", [](ContextHandle& h, int64_t slot) { h.use([&](Context& context) { context.release(slot); }); }, py::arg("slot"))
      .def(
          "copy_slot",
          [](ContextHandle& h, int64_t source, int64_t target, int64_t n) {
            h.use([&](Context& context) { context.copy_slot(source, target, n); });
          },
          py::arg("source"), py::arg("target"), py::arg("n"))
      .def(
          "set_threads",
          [](ContextHandle& h, int decode, int prompt) {
            h.use([&](Context& context) {
              for (const Part& part : context.model().parts()) part.backend->set_threads(decode, prompt);
            });
          },
          py::arg("decode"), py::arg("prompt"))
      .def("profile", &profile, py::arg("on"))
      .def("close", &ContextHandle::close);
}

void bind_sampler(py::module_& m) {
  const SamplerOptions d;
  py::class_<SamplerHandle>(m, "Sampler", "Chooses the next token from logits; see _core.pyi.")
      .def(py::init(&make_sampler), py::kw_only(), py::arg("temperature") = d.temperature, py::arg("top_k") = d.top_k,
           py::arg("top_p") = d.top_p, py::arg("min_p") = d.min_p, py::arg("typical_p") = d.typical_p,
           py::arg("repeat_penalty") = d.repeat_penalty, py::arg("frequency_penalty") = d.frequency_penalty,
           py::arg("presence_penalty") = d.presence_penalty, py::arg("penalty_last_n") = d.penalty_last_n, py::arg("seed") = d.seed)
      .def("sample", &sample, py::arg("logits").noconvert(), py::arg("history"))
      .def("needed_candidates", &needed_candidates, py::arg("n_vocab"))
      .def("sample_best", &sample_best, py::arg("best").noconvert())
      .def("reseed", [](SamplerHandle& h, uint64_t seed) { h.use([&](Sampler& sampler) { sampler.reseed(seed); }); }, py::arg("seed"));
}

}  // namespace

void bind_engine(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Candidate, logit, token);
  bind_model(m);
  bind_context(m);
  bind_sampler(m);
  m.def("isa", [] { return std::string(kernels::kernels().isa); });
  m.def("available_isas", &available_isas);
  m.def("backends", &backends);
  m.def("cpu_count", &cpu_count);
  m.def("architectures", [] {
    std::vector<std::string> names;
    for (const std::string_view name : supported_architectures()) names.emplace_back(name);
    return names;
  });
}

}  // namespace tq::bindings
