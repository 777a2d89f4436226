// The one graph of all architectures: which operations (backend.h) a model is, as lists that a backend can prepare, and what those lists
// say about the model's matrices.
#pragma once
#include <string>
#include <vector>

#include "model/model.h"

namespace tq {

// Where a pass computes on one device: buffers of float32 rows, one a token. Layers use them one after the other, so each is as wide as the
// widest layer needs; a layer's own Plane over it has the layer's own width.
struct Planes {
  BufferPtr x;                       // (rows, n_embd) the residual stream
  BufferPtr embedded;                // (rows, n_embd) what it was before the first layer; null without per-layer embeddings
  BufferPtr per_layer, projected;    // (rows, n_embd_layer) a layer's vector for the row's token, and its other part; likewise
  BufferPtr q, k, v;                 // attention: queries, keys and values of the batch's rows
  BufferPtr attended;                // what the heads give, before an output gate
  BufferPtr output_gate;             // that gate; null where no mixer has one
  BufferPtr alpha, beta, convolved;  // delta net (DeltaNetOp), whose q holds queries, keys and values; null where there is none
  BufferPtr gate, up;                // gated feed-forward; null where all layers are mixtures of experts, which have their own scratch
  BufferPtr branch;                  // (rows, n_embd) what a branch gives before its post norm; null without post norms
  BufferPtr experts;                 // (rows, n_embd) what a mixture gives beside a gated feed-forward; null where there is none
  BufferPtr hidden;                  // (rows, n_embd) behind the output norm; null until asked for
  BufferPtr logits;                  // (logit rows, n_vocab); null where the output is on another device
  BufferPtr best;                    // (logit rows, kMaxCandidates) Candidate; likewise
  int64_t bytes() const;
};

struct PlaneNeeds {
  int64_t first_layer = 0, last_layer = 0;  // those that will run here: [first_layer, last_layer)
  int64_t rows = 0;                         // of a batch, at most
  int64_t logit_rows = 0;                   // of logits computed at once; 0: none
};
Planes allocate_planes(Backend& backend, const Config& c, const PlaneNeeds& needs);
BufferPtr allocate_plane(Backend& backend, int64_t rows, int64_t width);
// Floats that a row of a batch takes in the planes of a model that runs on one device, those of logits aside.
int64_t plane_floats(const Config& c);

// The types of the caches that `type` asks for; throws unsupported where a backend of the model does not have it.
CacheElements cache_elements(const Model& model, CacheType type);

struct Graph {
  const Config& config;
  const Weights& weights;
  const Planes& planes;
  int64_t n_ctx;  // positions that a slot can hold
};
// Each appends operations that go on from the residual stream as the ones before left it.
void add_embedding(std::vector<Op>& ops, const Graph& g);
void add_first_stream(std::vector<Op>& ops, const Graph& g);  // Planes::embedded, from the batch's tokens
// state: the layer's own, or of the layer whose keys and values it sees.
void add_layer(std::vector<Op>& ops, const Graph& g, int64_t layer, const LayerState& state);
void add_output(std::vector<Op>& ops, const Graph& g);  // logits of the batch's output rows
void add_best(std::vector<Op>& ops, const Graph& g);    // the best tokens of these logits
void add_hidden(std::vector<Op>& ops, const Graph& g);  // the rows behind the output norm

// An input site: one vector a token that one or several matrices read.
struct InputSite {
  std::string name;   // of its first matrix without ".weight": "blk.3.attn_q" where q, k and v read the same
  std::string group;  // sites of which each token visits some: "blk.3.ffn_gate" of all experts' "blk.3.ffn_gate.7"; else `name`
  std::vector<std::string> matrices;  // that read it: names of tensors
  // Where the site's one matrix writes to the residual stream: the site that read the stream last, so that the stream has not changed
  // since. Empty where the products stay inside the branch, and in mixtures of experts.
  std::string writes_to;
  bool adds_directly = false;  // what that matrix gives is added to the stream as it is: no scale, no norm between
};
// The sites of a layer's operations, in the order of the computation. stream: the buffer of the residual stream.
std::vector<InputSite> input_sites(const std::vector<Op>& ops, const Buffer& stream);
std::string site_name(const Matrix& first);  // of the site that a matrix is the first to read
// The planes, other than the residual stream, that operations read before they write them: what must be kept to go on with them later.
std::vector<Plane> planes_needed(std::span<const Op> ops, const Planes& planes);

}  // namespace tq
