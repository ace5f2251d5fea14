// The operators that @name@ uses, and no other. C++17.
#ifndef KAPNET_RESOLVER_H_
#define KAPNET_RESOLVER_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

constexpr int kapnet_operators = @count@;

inline TfLiteStatus kapnet_add_operators(
    tflite::MicroMutableOpResolver<kapnet_operators>& resolver) {
  TfLiteStatus status = kTfLiteOk;
@calls@  return status;
}

#endif  // KAPNET_RESOLVER_H_
