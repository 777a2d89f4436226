// Metadata values: parsing with bounds checked, and access to the elements of arrays.
#pragma once
#include "gguf/cursor.h"
#include "gguf/gguf.h"

namespace tq::gguf {

// Reads the value of the given type number at the cursor; arrays are walked to their end (and may nest a few levels deep).
Value read_value(Cursor& cursor, uint32_t type);

}  // namespace tq::gguf
