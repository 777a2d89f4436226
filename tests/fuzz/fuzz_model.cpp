// The model loader and a forward pass: an Error or logits, whatever the file says.
#include <vector>

#include "fuzz/input.h"
#include "model/model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::allow_errors([&] {
    tq::ModelOptions options;
    options.backend.threads = 1;
    const auto model = tq::Model::open(fuzz::file_of({data, size}), options);
    tq::Context context(model, {.n_ctx = 4, .n_slots = 1, .n_batch = 2, .cache = tq::CacheType::automatic});
    std::vector<float> logits(size_t(model->config().n_vocab));
    const std::vector<int32_t> tokens{0, 1}, positions{0, 1}, slots{0, 0}, rows{1};
    context.forward({tokens, positions, slots, rows}, logits);
  });
  return 0;
}
