# Cross builds by zig (PyPI's `ziglang`: clang, libc++ and the C libraries of every system, in one package), as `make wheels` uses it:
#   cmake -S . -B build -DCMAKE_TOOLCHAIN_FILE=cmake/zig.cmake -DTQ_ZIG=$(python -c 'import ziglang, os; print(os.path.dirname(ziglang.__file__))')/zig \
#     -DTQ_TARGET=x86_64-linux-gnu.2.28
# Targets: ARCH-linux-gnu.GLIBC, ARCH-linux-musl, aarch64-macos.VERSION, x86_64-windows-gnu. libc++ is linked in, none of its symbols shows.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES TQ_ZIG TQ_TARGET)
if(NOT TQ_ZIG)
  file(TO_CMAKE_PATH "$ENV{TQ_ZIG}" TQ_ZIG)
endif()
if(NOT EXISTS "${TQ_ZIG}")
  message(FATAL_ERROR "TQ_ZIG: \"${TQ_ZIG}\" is no file; it names zig's program, as a CMake variable or in the environment")
endif()
string(REGEX MATCH "^([a-z0-9_]+)-([a-z]+)" ignored "${TQ_TARGET}")
set(arch ${CMAKE_MATCH_1})
set(system ${CMAKE_MATCH_2})

if(system STREQUAL "linux")
  set(CMAKE_SYSTEM_NAME Linux)
elseif(system STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(TQ_METAL OFF CACHE BOOL "Apple's frameworks and Objective-C are not zig's")
elseif(system STREQUAL "windows")
  set(CMAKE_SYSTEM_NAME Windows)
else()
  message(FATAL_ERROR "TQ_TARGET: \"${TQ_TARGET}\" names none of linux, macos, windows")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${arch})

set(CMAKE_CXX_COMPILER ${TQ_ZIG} c++ -target ${TQ_TARGET})
# zig's own default keeps frame pointers. Paths of this machine stay out of the objects.
set(CMAKE_CXX_FLAGS_INIT "-fomit-frame-pointer -g0 -ffile-prefix-map=${CMAKE_CURRENT_LIST_DIR}/..=.")
set(CMAKE_AR ${TQ_ZIG})
set(CMAKE_RANLIB ${TQ_ZIG})
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX ${CMAKE_CURRENT_LIST_DIR}/zig_rules.cmake)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
set(HAS_FLTO_THIN OFF CACHE INTERNAL "pybind11 need not try: it would compile libc++ for it")
set(HAS_FLTO_AUTO OFF CACHE INTERNAL "")
set(HAS_FLTO OFF CACHE INTERNAL "")
set(TQ_NEON_FLAGS -O3 -mcpu=generic+v8_2a+dotprod)  # zig takes features of processors, not -march

# A program that runs the tests of a target that this machine is not, where there is one.
if(arch STREQUAL "aarch64" AND system STREQUAL "linux")
  set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -cpu max)
elseif(system STREQUAL "windows")
  set(CMAKE_CROSSCOMPILING_EMULATOR wine)
endif()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
