// Runs @name@ on the test's images in TensorFlow Lite for Microcontrollers and
// compares logits, features and maps, bit by bit: an example of its use, too.
// C++17.
#include <cstdio>
#include <cstring>

#include "@name@_explain.h"
#include "@name@_model.h"
#include "@name@_resolver.h"
#include "@name@_test.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

alignas(16) uint8_t arena[KAPNET_TENSOR_ARENA_SIZE];
kapnet_explanation explanation;  // Too large for most stacks.

int check() {
  tflite::MicroMutableOpResolver<kapnet_operators> resolver;
  if (kapnet_add_operators(resolver) != kTfLiteOk) return -1;
  tflite::MicroInterpreter interpreter(
      tflite::GetModel(kapnet_model), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return -1;
  std::printf("arena: %d of %d bytes used\n",
              static_cast<int>(interpreter.arena_used_bytes()),
              KAPNET_TENSOR_ARENA_SIZE);
  int wrong = kapnet_test_maps();
  for (int image = 0; image < KAPNET_TEST_IMAGES; ++image) {
    std::memcpy(interpreter.input(KAPNET_IMAGES_INPUT)->data.int8,
                kapnet_test_input(image), KAPNET_IMAGES_SIZE);
@tflm_ask@    if (interpreter.Invoke() != kTfLiteOk) return -1;
    const int8_t* logits =
        interpreter.output(KAPNET_LOGITS_OUTPUT)->data.int8;
    const int8_t* features =
        interpreter.output(KAPNET_FEATURES_OUTPUT)->data.int8;
@tflm_explain@    std::printf("image %d: class %d, map %s\n", image,
                kapnet_top_class(logits),
                status == KAPNET_ALIVE ? "alive" : "dead");
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = check();
  if (wrong < 0) std::printf("FAILED: the interpreter refused\n");
  else std::printf("%s: %d numbers differ\n", wrong ? "FAILED" : "passed", wrong);
  return wrong != 0;
}
