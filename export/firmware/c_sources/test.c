/* See @name@_test.h. With KAPNET_TEST_MAIN it is a program of its own, which
 * exits with 0 if all is well. */
#include "@name@_test.h"

#include <stddef.h>

#include "@name@_explain.h"
#include "@name@_vectors.h"

static int differing(const int8_t *got, const int8_t *want, size_t count) {
  int wrong = 0;
  size_t i;
  for (i = 0; i < count; ++i) wrong += got[i] != want[i];
  return wrong;
}

static int differing_map(const kapnet_explanation *got, kapnet_status status,
                         int number) {
  int wrong = (int)status != kapnet_vector_status[number];
  size_t p;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    wrong += got->map[p] != kapnet_vector_maps[number][p];
    wrong += got->raw[p] != kapnet_vector_raw[number][p];
  }
  return wrong;
}

const int8_t *kapnet_test_input(int image) {
  return kapnet_vector_inputs[image];
}

@test_body@
#ifdef KAPNET_TEST_MAIN
#include <stdio.h>

int main(void) {
  int wrong = kapnet_test_maps();
  printf("%s: %d maps of %d images, %d numbers differ\n",
         wrong ? "FAILED" : "passed", KAPNET_VECTOR_MAPS, KAPNET_TEST_IMAGES,
         wrong);
  return wrong != 0;
}
#endif
