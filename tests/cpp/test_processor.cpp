// What the core finds out about the processor is what the kernel of Linux says of it, flag by flag.
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>

#include "check.h"
#include "common/processor.h"

namespace {

// The words of the first line of /proc/cpuinfo that begins with `name`; none on other systems.
std::set<std::string> flags(const std::string& name) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

}  // namespace

TEST("each set needs the one below it") {
  const tq::Processor& found = tq::processor();
  CHECK(found.avx2 || !found.avx512);
  CHECK(found.avx2 || !found.avx_vnni);
  CHECK(found.avx512 || !found.avx512_vbmi);
}

TEST("the flags are those of /proc/cpuinfo") {
  const tq::Processor& found = tq::processor();
#if TQ_X86
  const std::set<std::string> told = flags("flags");
  if (told.empty()) return;
  const auto all = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (!told.contains(name)) return false;
    return true;
  };
  CHECK_EQ(found.avx2, all({"avx2", "fma", "f16c", "bmi2"}));
  CHECK_EQ(found.avx_vnni, found.avx2 && all({"avx_vnni"}));
  CHECK_EQ(found.avx512, found.avx2 && all({"avx512f", "avx512bw", "avx512dq", "avx512vl"}));
  CHECK_EQ(found.avx512_vbmi, found.avx512 && all({"avx512vbmi", "avx512_vnni"}));
  CHECK(!found.dot_product && !found.matrix_products);
#elif TQ_ARM
  const std::set<std::string> told = flags("Features");  // under an emulator: that of the host, which has none
  if (told.empty()) return;
  CHECK_EQ(found.dot_product, told.contains("asimddp"));
  CHECK_EQ(found.matrix_products, told.contains("i8mm"));
  CHECK(!found.avx2);
#endif
}
