// What layers remember: attention, which keeps all positions, and a recurrent state, which knows only the latest. There is no model with
// recurrent layers yet; here the test plays the passes.
#include <memory>
#include <vector>

#include "check.h"
#include "model/state.h"

using namespace tq;

namespace {

constexpr int64_t kSlots = 3, kCapacity = 8, kHeads = 2, kDim = 2, kRecurrentBytes = 16;
const StateShape kAttention = AttentionState{kHeads, cached_row(CacheElement::f16, kDim), cached_row(CacheElement::f32, kDim)};
const StateShape kRecurrent = RecurrentState{kRecurrentBytes};

// Layers on two devices.
struct Memory {
  explicit Memory(const std::vector<StateShape>& shapes) : sequences(make(shapes), kSlots, kCapacity) {}

  // What a model's pass does: writes the rows of positions [first, last) from `seed` and changes recurrent states.
  void pass(int64_t slot, int64_t last, uint8_t seed) {
    const int64_t first = sequences.positions(slot);
    for (const auto& layer : layers)
      for (int64_t position = first; position < last; position++) write(*layer, slot, position, uint8_t(seed + position));
    sequences.hold(slot, last);
  }

  std::vector<uint8_t> content(int64_t slot) const {
    std::vector<uint8_t> all;
    for (const auto& layer : layers)
      for (const Piece& piece : layer->pieces(slot, sequences.positions(slot))) {
        all.resize(all.size() + size_t(piece.bytes));
        layer->backend().download(*piece.buffer, piece.offset, all.data() + all.size() - piece.bytes, piece.bytes);
      }
    return all;
  }

  std::unique_ptr<Backend> backends[2] = {make_cpu_backend({.threads = 1}), make_cpu_backend({.threads = 1})};
  std::vector<std::unique_ptr<LayerState>> layers;
  Sequences sequences;

 private:
  std::vector<const LayerState*> make(const std::vector<StateShape>& shapes) {
    std::vector<const LayerState*> made;
    for (size_t i = 0; i < shapes.size(); i++) {
      layers.push_back(std::make_unique<LayerState>(*backends[i % 2], shapes[i], kSlots, kCapacity));
      made.push_back(layers.back().get());
    }
    return made;
  }

  static void write(const LayerState& layer, int64_t slot, int64_t position, uint8_t value) {
    for (const Piece& piece : layer.pieces(slot, 1)) {
      const std::vector<uint8_t> row(size_t(piece.bytes), value);
      const bool recurrent = !layer.keeps_positions();
      std::vector<uint8_t> before(row.size());
      layer.backend().download(*piece.buffer, piece.offset, before.data(), piece.bytes);
      if (recurrent)
        for (uint8_t& b : before) b = uint8_t(b * 3 + value);
      layer.backend().upload(*piece.buffer, piece.offset + (recurrent ? 0 : position * piece.bytes), recurrent ? before.data() : row.data(),
                             piece.bytes);
    }
  }
};

// The content of a slot that computed n positions in one go.
std::vector<uint8_t> fresh(const std::vector<StateShape>& shapes, int64_t n, uint8_t seed) {
  Memory memory(shapes);
  memory.pass(0, n, seed);
  return memory.content(0);
}

const std::vector<StateShape> kPure{kAttention, kAttention}, kHybrid{kAttention, kRecurrent, kRecurrent, kAttention};

}  // namespace

TEST("attention goes back to any position") {
  Memory m(kPure);
  m.pass(1, 6, 10);
  m.sequences.rewind(1, 4);
  CHECK_EQ(m.sequences.positions(1), 4);
  CHECK(m.content(1) == fresh(kPure, 4, 10));
  m.pass(1, 7, 90);
  m.sequences.rewind(1, 4);
  CHECK(m.content(1) == fresh(kPure, 4, 10));
  CHECK_THROWS(m.sequences.rewind(1, 5), Cause::invalid_argument, "slot 1 holds 4 positions, not 5");
  CHECK_THROWS(m.sequences.rewind(1, -1), Cause::invalid_argument, "not -1");
  CHECK_THROWS(m.sequences.rewind(3, 0), Cause::invalid_argument, "slot 3 is not in 0 .. 2");
}

TEST("a recurrent state goes back to nothing, and else refuses") {
  Memory m(kHybrid);
  m.pass(0, 5, 10);
  const std::vector<uint8_t> before = m.content(0);
  CHECK_THROWS(m.sequences.rewind(0, 4), Cause::unsupported, "after 5 positions and not after 4");
  CHECK_THROWS(m.sequences.save(0, 4), Cause::unsupported, "recurrent");
  CHECK_THROWS(m.sequences.copy(0, 1, 4), Cause::unsupported, "recurrent");
  CHECK(m.content(0) == before);
  m.sequences.rewind(0, 5);
  CHECK(m.content(0) == before);
  m.sequences.rewind(0, 0);
  m.pass(0, 5, 10);
  CHECK(m.content(0) == before);
}

TEST("snapshots: a slot returns to a moment, another slot starts from it") {
  for (const auto& shapes : {kPure, kHybrid}) {
    Memory m(shapes);
    m.pass(0, 3, 10);
    const auto early = m.sequences.snapshot(0);
    CHECK_EQ(early->positions, 3);
    CHECK_EQ(early->bytes(), shapes == kPure ? 0 : 2 * kRecurrentBytes);
    m.pass(0, 6, 50);
    const auto late = m.sequences.snapshot(0);
    m.pass(0, 8, 50);
    m.pass(2, 7, 99);
    m.sequences.restore(2, *early);
    CHECK_EQ(m.sequences.positions(2), 3);
    CHECK(m.content(2) == fresh(shapes, 3, 10));
    m.sequences.restore(0, *late);
    CHECK_EQ(m.sequences.positions(0), 6);
    m.sequences.restore(0, *early);
    CHECK(m.content(0) == fresh(shapes, 3, 10));
    CHECK(!late->intact && early->intact);
    m.pass(0, 7, 77);  // over what the late one needs
    CHECK_THROWS(m.sequences.restore(0, *late), Cause::invalid_argument, "after 6 positions is lost");
    m.sequences.rewind(0, 0);
    CHECK_THROWS(m.sequences.restore(1, *early), Cause::invalid_argument, "is lost");
    Memory other(shapes);
    other.pass(0, 3, 10);
    const auto foreign = other.sequences.snapshot(0);
    CHECK_THROWS(m.sequences.restore(0, *foreign), Cause::invalid_argument, "another context");
  }
}

TEST("slots are copied whole, their neighbours untouched") {
  for (const auto& shapes : {kPure, kHybrid}) {
    Memory m(shapes);
    m.pass(0, 5, 10), m.pass(1, 7, 20), m.pass(2, 2, 30);
    const auto lost = m.sequences.snapshot(1);
    m.sequences.copy(0, 1, 5);
    CHECK_EQ(m.sequences.positions(1), 5);
    CHECK(m.content(1) == fresh(shapes, 5, 10) && m.content(0) == fresh(shapes, 5, 10) && m.content(2) == fresh(shapes, 2, 30));
    CHECK(!lost->intact);
    m.sequences.copy(0, 2, 0);
    CHECK_EQ(m.sequences.positions(2), 0);
    m.pass(2, 4, 40);
    CHECK(m.content(2) == fresh(shapes, 4, 40));
  }
  Memory m(kPure);
  m.pass(0, 5, 10);
  m.sequences.copy(0, 1, 3);
  CHECK(m.content(1) == fresh(kPure, 3, 10));
  m.sequences.copy(1, 1, 2);
  CHECK_EQ(m.sequences.positions(1), 2);
}

TEST("saved states go on in another context of the same layers, and in no other") {
  for (const auto& shapes : {kPure, kHybrid}) {
    Memory m(shapes), other(shapes);
    m.pass(1, 5, 10), other.pass(2, 8, 60);
    const std::vector<uint8_t> state = m.sequences.save(1, 5);
    other.sequences.load(2, state);
    CHECK_EQ(other.sequences.positions(2), 5);
    CHECK(other.content(2) == m.content(1));
    other.sequences.load(2, m.sequences.save(0, 0));
    CHECK_EQ(other.sequences.positions(2), 0);
  }
  Memory m(kPure);
  m.pass(0, 5, 10);
  const std::vector<uint8_t> state = m.sequences.save(0, 5);
  const StateShape other_type = AttentionState{kHeads, cached_row(CacheElement::f32, kDim), cached_row(CacheElement::f32, kDim)};
  const StateShape other_rows = AttentionState{kHeads, cached_row(CacheElement::f16, kDim), cached_row(CacheElement::f32, kDim + 1)};
  const std::pair<std::vector<StateShape>, const char*> others[] = {
      {{kAttention}, "it has 2 layers, this one 1"},
      {{kAttention, other_type}, "its cache has another type"},
      {{kAttention, other_rows}, "layer 1 has keys of 4 and values of 8 bytes, here keys of 4 and values of 12 bytes"},
      {{kAttention, kRecurrent}, "layer 1 remembers something of another kind"}};
  for (const auto& [shapes, text] : others) {
    Memory other(shapes);
    other.pass(0, 4, 70);
    const std::vector<uint8_t> before = other.content(0);
    CHECK_THROWS(other.sequences.load(0, state), Cause::bad_file, text);
    CHECK(other.sequences.positions(0) == 4 && other.content(0) == before);
  }
}

TEST("saved states that were cut or changed are refused") {
  Memory m(kHybrid);
  m.pass(0, 5, 10);
  const std::vector<uint8_t> state = m.sequences.save(0, 5);
  for (size_t size = 0; size < state.size(); size++) {
    const std::vector<uint8_t> cut(state.begin(), state.begin() + std::ptrdiff_t(size));
    CHECK_THROWS(m.sequences.load(0, cut), Cause::bad_file, "state: ");
  }
  const size_t header = state.size() - m.content(0).size();
  for (size_t at = 0; at < header; at++)
    for (const uint8_t value : {0x01, 0x7F, 0x80, 0xFF}) {
      std::vector<uint8_t> changed = state;
      changed[at] ^= value;
      CHECK_THROWS(m.sequences.load(0, changed), Cause::bad_file, "state: ");
    }
  CHECK(m.content(0) == fresh(kHybrid, 5, 10));
}
