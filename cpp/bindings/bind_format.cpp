// Layout constants and the scalar oracle.
#include "bindings/bindings.h"
#include "common/error.h"
#include "format/cache.h"
#include "format/reference.h"

namespace tq::bindings {
namespace {

tqn::PlaneBytes checked_plane_bytes(int64_t n_out, int64_t n_in, int bits) {
  tqn::PlaneBytes bytes;
  if (n_out < 1 || n_in < 1 || !tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), bits, &bytes))
    throw Error(Cause::invalid_argument, "no TQN matrix of " + std::to_string(n_out) + " x " + std::to_string(n_in) + " at " +
                                             std::to_string(bits) + " bits (n_in: multiple of 4 up to 65536; bits: " + format_list() + ")");
  return bytes;
}

py::dict plane_bytes(int64_t n_out, int64_t n_in, int bits) {
  const tqn::PlaneBytes bytes = checked_plane_bytes(n_out, n_in, bits);
  py::dict out;
  out["codes"] = bytes.codes;
  out["row_scale"] = bytes.row_scale;
  out["codebook"] = bytes.codebook;
  return out;
}

py::tuple default_codebook(int bits) {
  checked_plane_bytes(1, tqn::kTileCols, bits);
  const auto codebook = reference::default_codebook(bits);
  return py::make_tuple(py::array_t<int8_t>(py::ssize_t(codebook.size()), codebook.data()), reference::default_unit(bits));
}

void require_bytes(const char* what, py::ssize_t found, uint64_t wanted) {
  if (uint64_t(found) != wanted)
    throw Error(Cause::invalid_argument,
                std::string(what) + " has " + std::to_string(found) + " bytes, must have " + std::to_string(wanted));
}

py::array_t<int8_t> reference_decode(const Array<uint8_t>& codes, int bits, int64_t n_out, int64_t n_in, const Array<int8_t>& codebook) {
  const tqn::PlaneBytes bytes = checked_plane_bytes(n_out, n_in, bits);
  require_bytes("codes", codes.size(), bytes.codes);
  require_bytes("codebook", codebook.size(), bytes.codebook);
  py::array_t<int8_t> out({n_out, n_in});
  int8_t* values = out.mutable_data();
  TqnMatrix w;
  w.n_out = n_out, w.n_in = n_in, w.k = bits;
  w.codes = codes.data(), w.codebook = codebook.data();
  py::gil_scoped_release release;
  for (int64_t i = 0; i < n_out; i++)
    for (int64_t j = 0; j < n_in; j++) values[i * n_in + j] = reference::code(w, i, j);
  return out;
}

// Of one position's key and value together.
int64_t cached_bytes(const std::string& cache, int64_t head_dim) {
  if (head_dim < 1 || head_dim > (int64_t(1) << 30)) throw Error(Cause::invalid_argument, "head_dim: " + std::to_string(head_dim));
  const CacheElements types = elements_of(parse_cache(cache));
  const auto tile_of = [&](CacheElement type) { return cached_row(type, head_dim).bytes_of(tqn::cache::kTile); };
  return (tile_of(types.k) + tile_of(types.v)) / tqn::cache::kTile;
}

}  // namespace

void bind_format(py::module_& m) {
  m.attr("FORMAT_VERSION") = tqn::kVersion;
  m.attr("TILE_ROWS") = tqn::kTileRows;
  m.attr("TILE_COLS") = tqn::kTileCols;
  m.attr("TILE_STEPS") = tqn::kTileSteps;
  m.attr("FORMATS") = py::tuple(py::cast(std::vector<int>(std::begin(tqn::Formats::bits), std::end(tqn::Formats::bits))));
  m.def("plane_bytes", &plane_bytes, py::arg("n_out"), py::arg("n_in"), py::arg("bits"));
  m.def("default_codebook", &default_codebook, py::arg("bits"));
  m.def("reference_decode", &reference_decode, py::arg("codes").noconvert(), py::arg("bits"), py::arg("n_out"), py::arg("n_in"),
        py::arg("codebook").noconvert());
  m.def("cached_bytes", &cached_bytes, py::arg("cache"), py::arg("head_dim"));
}

}  // namespace tq::bindings
