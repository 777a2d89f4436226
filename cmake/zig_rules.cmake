# How zig makes an archive and a module; included behind what CMake knows of the platform, which on Windows and macOS would say otherwise.
set(CMAKE_CXX_ARCHIVE_CREATE "<CMAKE_AR> ar qcD <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "<CMAKE_AR> ar qD <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "<CMAKE_RANLIB> ranlib <TARGET>")
if(CMAKE_SYSTEM_NAME STREQUAL "Darwin")
  # zig does not know -bundle: it takes the module for a program, and its linker crashes. Python loads a dynamic library just as well.
  set(CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS "-shared")
endif()
