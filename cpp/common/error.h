// The one way the core reports failure: an exception with a cause, which the bindings turn into a Python exception of that kind.
#pragma once
#include <stdexcept>
#include <string>

namespace tq {

enum class Cause {
  invalid_argument,  // ValueError
  bad_file,          // FormatError (a ValueError): the file's content is damaged or hostile
  io,                // OSError
  out_of_memory,     // MemoryError
  unsupported,       // UnsupportedError (a RuntimeError): valid, but this build, device or version cannot do it
  closed,            // RuntimeError: the object was closed, or the work was cancelled
};

class Error : public std::runtime_error {
 public:
  Error(Cause cause, const std::string& what) : std::runtime_error(what), cause(cause) {}
  const Cause cause;
};

}  // namespace tq
