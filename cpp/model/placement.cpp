#include "model/placement.h"

#include <algorithm>
#include <charconv>

#include "common/error.h"

namespace tq {
namespace {

struct Request {
  std::string name;
  int device;
  int64_t layers = -1;  // -1: what the others leave
};

[[noreturn]] void invalid(const std::string& text) {
  throw Error(Cause::invalid_argument,
              "device: \"" + text + "\" is not like \"cpu\", \"cuda\", \"metal\", \"cuda:1\" or \"cpu*8,cuda:0*12\"");
}

int64_t number(std::string_view digits, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0 || value > INT32_MAX) invalid(text);
  return value;
}

Request parse_part(std::string part, int default_device, const std::string& text) {
  Request request{.name = {}, .device = default_device};
  if (const size_t star = part.find('*'); star != std::string::npos) {
    request.layers = number(std::string_view(part).substr(star + 1), text);
    part.resize(star);
  }
  if (const size_t colon = part.find(':'); colon != std::string::npos) {
    request.device = int(number(std::string_view(part).substr(colon + 1), text));
    part.resize(colon);
  }
  if (part != "cpu" && part != "cuda" && part != "metal") invalid(text);
  request.name = part;
  return request;
}

std::vector<Request> parse(const std::string& text, int default_device) {
  std::vector<Request> requests;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    requests.push_back(parse_part(text.substr(start, end - start), default_device, text));
    start = end + 1;
  }
  return requests;
}

// Numbers beyond the model's layers are cut, so that "cpu,cuda*99" means all on the GPU.
void divide(std::vector<Request>& requests, int64_t n_layers, const std::string& where) {
  int64_t left = n_layers;
  Request* open = nullptr;
  for (Request& r : requests) {
    if (r.layers < 0) {
      if (open) throw Error(Cause::invalid_argument, where + " has several parts without a number of layers");
      open = &r;
      continue;
    }
    r.layers = std::min(r.layers, left);
    left -= r.layers;
  }
  if (open)
    open->layers = left;
  else if (left > 0)
    throw Error(Cause::invalid_argument, where + " leaves " + std::to_string(left) + " of " + std::to_string(n_layers) + " layers out");
}

std::unique_ptr<Backend> make_backend(const Request& request, BackendOptions options) {
  options.device = request.device;
  if (request.name == "cuda") return make_cuda_backend(options);
  if (request.name == "metal") return make_metal_backend(options);
  return make_cpu_backend(options);
}

}  // namespace

std::vector<Part> make_parts(const std::string& path, const ModelOptions& options, int64_t n_layers) {
  std::vector<Request> requests = parse(options.device, options.backend.device);
  divide(requests, n_layers, path + ": device \"" + options.device + "\"");
  std::vector<Part> parts;
  int64_t next = 0;
  for (const Request& r : requests) {
    if (r.layers == 0) continue;
    parts.push_back({make_backend(r, options.backend), next, next + r.layers});
    next += r.layers;
  }
  return parts;
}

}  // namespace tq
