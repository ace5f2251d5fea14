/* Checks of @name@ against what it must answer, for a computer, an emulator or
 * a board. C99. */
#ifndef KAPNET_TEST_H_
#define KAPNET_TEST_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KAPNET_TEST_IMAGES @images@

/* Explains the stored features and compares the maps, bit by bit. Returns how
 * many numbers differ: 0 if all is well. Needs no interpreter. */
int kapnet_test_maps(void);

/* What to put into the model's input for the test's image number `image`. */
const int8_t *kapnet_test_input(int image);
@test_declarations@
/* Compares what the interpreter gave for it. Returns how many numbers differ. */
int kapnet_test_outputs(int image, const int8_t *logits,
                        const int8_t *features@sensitivity_parameter@);

#ifdef __cplusplus
}
#endif

#endif  /* KAPNET_TEST_H_ */
