// Gated delta nets on the device and on the CPU against the oracle, over several sequences and passes; states that are copied and return.
#include "device_check.h"
#include "format/delta_net.h"

using namespace device_check;

namespace {

constexpr int kSlots = 3, kLength = 80;

// One layer, and what its tokens bring in each slot, (kLength, width) each.
struct Net {
  DeltaNetShape shape;
  std::vector<float> conv, rate, dt_bias;
  std::vector<float> qkv[kSlots], alpha[kSlots], beta[kSlots];
  explicit Net(const DeltaNetShape& s) : shape(s) {
    Random random{uint64_t(s.key_dim * 1000 + s.value_dim)};
    conv = random.normals(s.taps * s.conv_width()), rate = random.normals(s.n_value_heads), dt_bias = random.normals(s.n_value_heads);
    for (float& r : rate) r = -std::fabs(r);
    for (int slot = 0; slot < kSlots; slot++) {
      qkv[slot] = random.normals(kLength * s.conv_width());
      alpha[slot] = random.normals(kLength * s.n_value_heads), beta[slot] = random.normals(kLength * s.n_value_heads);
    }
  }
  // (n, value_width) of a slot.
  std::vector<double> oracle(int slot, int64_t n) const {
    std::vector<double> out(size_t(n * shape.value_width()));
    reference::delta_net(shape, {conv.data(), rate.data(), dt_bias.data()}, n, qkv[slot].data(), alpha[slot].data(), beta[slot].data(),
                         out.data());
    return out;
  }
};

using Places = std::vector<std::pair<int, int>>;  // the slot and position of each row

Places run_of(int slot, int first, int last) {
  Places places;
  for (int p = first; p < last; p++) places.emplace_back(slot, p);
  return places;
}

// The layer on a backend, with planes for kMaxRows rows.
struct Layer {
  static constexpr int kMaxRows = 2 * kLength;
  const Net& net;
  Backend& b;
  TestPlane qkv, alpha, beta, convolved, out, conv, rate, dt_bias;
  BufferPtr state;
  std::unique_ptr<Program> program;

  Layer(Backend& backend, const Net& n)
      : net(n),
        b(backend),
        qkv(b, kMaxRows, n.shape.conv_width()),
        alpha(b, kMaxRows, n.shape.n_value_heads),
        beta(b, kMaxRows, n.shape.n_value_heads),
        convolved(b, kMaxRows, n.shape.conv_width()),
        out(b, kMaxRows, n.shape.value_width()),
        conv(b, n.conv, n.shape.conv_width()),
        rate(b, n.rate, n.shape.n_value_heads),
        dt_bias(b, n.dt_bias, n.shape.n_value_heads),
        state(b.allocate(kSlots * n.shape.state_floats() * 4)) {
    Op op{.kind = Op::delta_net};
    op.delta_net_op = {.shape = net.shape,
                       .qkv = qkv.plane,
                       .alpha = alpha.plane,
                       .beta = beta.plane,
                       .conv = conv.buffer.get(),
                       .rate = rate.buffer.get(),
                       .dt_bias = dt_bias.buffer.get(),
                       .state = state.get(),
                       .convolved = convolved.plane,
                       .out = out.plane};
    program = b.prepare({op}, kMaxRows);
  }
  // One row of `width` for each place.
  void fill(const TestPlane& plane, const std::vector<float> (&values)[kSlots], const Places& places) {
    const int64_t width = plane.plane.width;
    std::vector<float> rows;
    for (const auto& [slot, p] : places)
      rows.insert(rows.end(), &values[slot][size_t(p * width)], &values[slot][size_t(p * width)] + width);
    b.upload(*plane.buffer, 0, rows.data(), int64_t(rows.size()) * 4);
  }
  std::vector<float> pass(const Places& places) {
    fill(qkv, net.qkv, places), fill(alpha, net.alpha, places), fill(beta, net.beta, places);
    std::vector<float> result(places.size() * size_t(net.shape.value_width()), NAN);
    b.upload(*out.buffer, 0, result.data(), int64_t(result.size()) * 4);  // whatever is not written shows
    Rows rows(int(places.size()));
    for (size_t r = 0; r < places.size(); r++) rows.slots[r] = places[r].first, rows.positions[r] = places[r].second;
    b.run(*program, rows.batch());
    b.download(*out.buffer, 0, result.data(), int64_t(result.size()) * 4);
    return result;
  }
};

// Heads of the widths that the kernels tell apart, odd ones, and both orders of value heads.
std::vector<DeltaNetShape> shapes() {
  std::vector<DeltaNetShape> all{{2, 4, 12, 20, 4, true},   {1, 3, 33, 7, 2, false},   {2, 4, 64, 80, 4, false},
                                 {1, 1, 200, 300, 5, true}, {1, 2, 512, 64, 4, false}, {2, 4, 128, 128, 4, true}};
  if (!small_cases()) all.push_back({16, 32, 128, 128, 4, true});
  return all;
}

// Prompts of two slots, row by row in turn; then single tokens beside a prompt; then a slot that begins again, in passes of equal length
// (one graph) with other numbers of sequences.
std::vector<Places> mixed_passes() {
  Places first;
  for (int p = 0; p < 37; p++) {
    first.emplace_back(2, p);
    if (p < 5) first.emplace_back(0, p);
  }
  return {first, {{2, 37}, {0, 5}, {1, 0}, {1, 1}}, {{1, 2}, {0, 6}}, {{2, 0}, {2, 1}, {2, 2}, {1, 3}}, {{0, 7}, {0, 8}, {0, 9}, {0, 10}}};
}

}  // namespace

TEST("prompts and tokens of several sequences in one pass equal the oracle") {
  const auto cpu = make_cpu_backend({.threads = 2}), device = device_backend(Precision::int8);
  for (const DeltaNetShape& s : shapes()) {
    const Net net(s);
    std::vector<double> expected[kSlots];
    double largest = 1;
    for (int slot = 0; slot < kSlots; slot++) {
      expected[slot] = net.oracle(slot, 38);
      for (const double e : expected[slot]) largest = std::max(largest, std::fabs(e));
    }
    // Sums of key_dim rounded products, and at most 32 roundings for convolution, norm and gates; a token carries the errors of those
    // before it on, none of them larger than it was.
    const double bound = 38. * (s.key_dim + 32) * 0x1p-24 * largest;
    for (Backend* b : {cpu.get(), device.get()}) {
      Layer layer(*b, net);
      for (const Places& places : mixed_passes()) {
        const std::vector<float> out = layer.pass(places);
        const size_t width = size_t(s.value_width());
        double worst = 0;
        for (size_t i = 0; i < out.size(); i++) {
          const auto& [slot, position] = places[i / width];
          worst = check::worse(worst, out[i], expected[slot][size_t(position) * width + i % width]);
        }
        CHECK_NEAR(worst, 0, bound);
      }
    }
  }
}

TEST("neither cuts of a prompt nor neighbours in the batch show, to the bit") {
  const auto b = device_backend(Precision::int8);
  for (const DeltaNetShape& s : shapes()) {
    const Net net(s);
    Layer layer(*b, net);
    const std::vector<float> whole = layer.pass(run_of(1, 0, 70));
    const size_t width = size_t(s.value_width());
    for (const std::vector<int>& cuts : {std::vector<int>{1, 33, 70}, {40, 41, 42, 57, 70}}) {
      std::vector<float> pieces;
      int first = 0;
      for (const int last : cuts) {
        Places places = run_of(1, first, last);
        const size_t own = places.size() * width;
        for (const auto& other : run_of(2, first, last)) places.push_back(other);
        const std::vector<float> out = layer.pass(places);
        pieces.insert(pieces.end(), out.begin(), out.begin() + std::ptrdiff_t(own));
        first = last;
      }
      CHECK(pieces == whole);
    }
  }
}

TEST("a state that was copied, within the device or through the host, goes on to the bit") {
  const auto b = device_backend(Precision::int8);
  const DeltaNetShape s{2, 4, 128, 128, 4, true};
  const Net net(s);
  Layer layer(*b, net);
  const int64_t bytes = s.state_floats() * 4;
  layer.pass(run_of(1, 0, 21));
  const BufferPtr kept = b->allocate(bytes);
  b->copy(*layer.state, bytes, *kept, 0, bytes);
  std::vector<uint8_t> saved(static_cast<size_t>(bytes));
  b->download(*layer.state, bytes, saved.data(), bytes);
  const std::vector<float> expected = layer.pass(run_of(1, 21, 30));
  CHECK(layer.pass(run_of(1, 21, 30)) != expected);  // a state cannot be gone back with: it must be restored
  b->copy(*kept, 0, *layer.state, bytes, bytes);
  CHECK(layer.pass(run_of(1, 21, 30)) == expected);
  b->upload(*layer.state, bytes, saved.data(), bytes);
  CHECK(layer.pass(run_of(1, 21, 30)) == expected);
}

TEST("the heads' norm and attention's output gate equal the CPU's") {
  for (const int n : {1, 5, 70}) {
    Random random{uint64_t(n)};
    const int64_t width = 512;
    const std::vector<float> x = random.normals(n * width), gate = random.normals(n * width), weight = random.normals(128);
    const Packed packed(random, 130, width, 4, Rotation::hartley_hadamard, 2);
    const Dense dense(random, 130, width, kernels::DType::f32);
    for (const HostMatrix* host : {&packed.host, &dense.host}) {
      std::vector<float> results[2];
      const std::unique_ptr<Backend> backends[2] = {make_cpu_backend({.threads = 1, .precision = Precision::f32}),
                                                    device_backend(Precision::f32)};
      for (int i = 0; i < 2; i++) {
        Backend& b = *backends[i];
        const TestPlane heads(b, x, width), gates(b, gate, width), norm(b, weight, 128), y(b, n, 130);
        const MatrixPtr matrix = b.matrix(*host);
        Op normed{.kind = Op::norm}, product{.kind = Op::linear};
        normed.norm_op = {.x = heads.plane, .groups = 4, .weight = norm.buffer.get(), .eps = 1e-6f, .y = heads.plane};
        product.linear_op = {{.kind = LinearInput::gated, .x = gates.plane, .up = heads.plane, .activation = GatedActivation::sigmoid},
                             {{matrix.get(), y.plane}},
                             false};
        const auto program = b.prepare({normed, product}, n);
        b.run(*program, Rows(n).batch());
        results[i] = read(b, *y.buffer);
      }
      CHECK_NEAR(check::largest_difference(results[1], results[0]), 0, 23 * 1e-4);  // sums of 512 products of unit size
    }
  }
}

TEST("heads that are too wide are refused") {
  const auto b = device_backend(Precision::int8);
  const Net net({1, 1, 520, 8, 4, false});
  CHECK_THROWS(Layer(*b, net), Cause::unsupported, "heads of 520 elements, at most 512");
}
