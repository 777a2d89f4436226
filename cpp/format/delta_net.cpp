#include "format/delta_net.h"

#include <cmath>
#include <vector>

namespace tq::reference {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// (conv_width): the token's inputs behind the convolution and silu.
std::vector<double> convolved(const DeltaNetShape& s, const float* conv, const float* qkv, int64_t token) {
  std::vector<double> out(size_t(s.conv_width()));
  for (int64_t c = 0; c < s.conv_width(); c++) {
    double sum = 0;
    for (int64_t tap = 0; tap < s.taps; tap++) {
      const int64_t at = token - (s.taps - 1) + tap;
      if (at >= 0) sum += double(conv[tap * s.conv_width() + c]) * qkv[at * s.conv_width() + c];
    }
    out[size_t(c)] = sum * sigmoid(sum);
  }
  return out;
}

void normalize(double* x, int n, double factor) {
  double sum = kDeltaNormEps;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  for (int i = 0; i < n; i++) x[i] *= factor / std::sqrt(sum);
}

}  // namespace

void delta_net(const DeltaNetShape& s, const DeltaNetWeights& w, int64_t n, const float* qkv, const float* alpha, const float* beta,
               double* out) {
  std::vector<double> states(size_t(s.value_width() * s.key_dim));
  for (int64_t t = 0; t < n; t++) {
    std::vector<double> x = convolved(s, w.conv, qkv, t);
    for (int h = 0; h < 2 * s.n_key_heads; h++)
      normalize(&x[size_t(h) * size_t(s.key_dim)], s.key_dim, h < s.n_key_heads ? 1 / std::sqrt(double(s.key_dim)) : 1);
    for (int h = 0; h < s.n_value_heads; h++) {
      const double* q = &x[size_t(s.key_head(h)) * size_t(s.key_dim)];
      const double *k = q + s.key_width(), *v = &x[size_t(2 * s.key_width() + int64_t(h) * s.value_dim)];
      const double rate = alpha[t * s.n_value_heads + h] + w.dt_bias[h];
      const double decay = std::exp(w.rate[h] * std::log1p(std::exp(rate))), step = sigmoid(beta[t * s.n_value_heads + h]);
      for (int c = 0; c < s.value_dim; c++) {
        double* state = &states[size_t((int64_t(h) * s.value_dim + c) * s.key_dim)];
        double known = 0, result = 0;
        for (int i = 0; i < s.key_dim; i++) known += (state[i] *= decay) * k[i];
        for (int i = 0; i < s.key_dim; i++) result += (state[i] += k[i] * step * (v[c] - known)) * q[i];
        out[t * s.value_width() + int64_t(h) * s.value_dim + c] = result;
      }
    }
  }
}

}  // namespace tq::reference
