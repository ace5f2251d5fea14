/* See @name@_explain.h. */
#include "@name@_explain.h"

#include <stddef.h>
@includes@
/* Whatever the features, no sum below leaves its type: this fails to compile
 * where one could. */
#define KAPNET_ASSERT(name, condition) \
  typedef char kapnet_assert_##name[(condition) ? 1 : -1]

int kapnet_top_class(const int8_t logits[KAPNET_LOGITS]) {
  int top = 0;
  int zero = KAPNET_LOGITS_ZERO_POINT;
  int k;
  if (KAPNET_LOGITS == 1) return logits[0] >= zero;
  for (k = 1; k < KAPNET_LOGITS; ++k) {
    if (logits[k] > logits[top]) top = k;
  }
  return top;
}

/* Makes the map of the raw values: 255 for the largest, rounded. */
static kapnet_status normalize(kapnet_explanation *out) {
  uint32_t largest = 0;
  unsigned shift = 0;
  size_t p;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    if (out->raw[p] > largest) largest = out->raw[p];
  }
  while ((largest >> shift) >= (UINT32_C(1) << 24)) ++shift;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    uint32_t most = largest >> shift;
    out->map[p] = (uint8_t)(
        most ? ((out->raw[p] >> shift) * 255u + most / 2u) / most : 0u);
  }
  return largest ? KAPNET_ALIVE : KAPNET_DEAD;
}

