# Cross build for 64-bit Arm Linux; ctest runs the programs under qemu's user mode. Static, so that qemu needs no Arm libraries.
#   cmake -S . -B build-arm -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DTQ_PYTHON=OFF -DTQ_TESTS=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -cpu max)  # every extension that a kernel may use
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
