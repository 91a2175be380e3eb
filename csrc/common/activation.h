// The activations that an op may apply, by name. Their arithmetic: activations.h.
#pragma once

#include <cstdint>

namespace hybrid {

enum class Activation : int32_t { none, relu, relu6, gelu, hardswish };

constexpr const char* kActivationNames[] = {"none", "relu", "relu6", "gelu", "hardswish"};

}  // namespace hybrid
