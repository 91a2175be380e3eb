// What Python asks the library itself, by ctypes: how it was built.
#include "build_info.h"

extern "C" __attribute__((visibility("default"))) const char* hybrid_build_info() {
  return kBuildInfo;
}
