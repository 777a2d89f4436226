// What the engine's Python objects hold: an object of the core, until close() takes it away, from any thread and at any time.
#pragma once
#include <memory>
#include <mutex>

#include "bindings/gguf_file.h"
#include "common/error.h"
#include "common/fork_mutex.h"
#include "model/model.h"

namespace tq::bindings {

class ModelHandle {
 public:
  explicit ModelHandle(std::shared_ptr<Model> model)
      : model_(std::move(model)), file_(std::make_shared<GgufFile>(model_->shared_file(), false)) {}
  std::shared_ptr<Model> get() const {  // the caller's share keeps the model alive past close()
    if (!model_) throw Error(Cause::closed, "the model is closed");
    return model_;
  }
  std::shared_ptr<GgufFile> file() const { return get(), file_; }
  void close() {
    std::shared_ptr<Model> last = std::move(model_);
    file_.reset();
    py::gil_scoped_release release;
    last.reset();
  }

 private:
  std::shared_ptr<Model> model_;  // guarded by the GIL
  std::shared_ptr<GgufFile> file_;
};

class ContextHandle {
 public:
  explicit ContextHandle(std::unique_ptr<Context> context)
      : n_ctx(context->n_ctx()),
        n_slots(context->n_slots()),
        n_batch(context->n_batch()),
        n_vocab(context->model().config().n_vocab),
        n_embd(context->model().config().n_embd),
        context_(std::move(context)) {}

  // Runs body(Context&) without the GIL; one at a time, so that close() waits for it.
  template <class Body>
  void use(Body&& body) {
    py::gil_scoped_release release;
    std::lock_guard lock(mutex_);
    if (!context_) throw Error(Cause::closed, "the context is closed");
    body(*context_);
  }
  ~ContextHandle() { close(); }
  void close() {
    py::gil_scoped_release release;
    if (mutex_.lost()) return (void)context_.release();  // a forked child's: a thread that it does not have was using it
    std::lock_guard lock(mutex_);
    context_.reset();
  }

  const int64_t n_ctx, n_slots, n_batch, n_vocab, n_embd;

 private:
  ForkMutex mutex_;
  std::unique_ptr<Context> context_;
};

}  // namespace tq::bindings
