/* What @name@ looked at: the map of layer @layer@, method @method@.
 *
 * Written by keras_attr_preserve from the model whose SHA-256 is
 * @sha256@
 * C99, integers only, no allocation, no library call; every machine gives the
 * same bits. All state is in the structure that the caller hands in, so that
 * two threads may explain at once.
 */
#ifndef KAPNET_EXPLAIN_H_
#define KAPNET_EXPLAIN_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KAPNET_MAP_HEIGHT @height@
#define KAPNET_MAP_WIDTH @width@
#define KAPNET_MAP_SIZE (KAPNET_MAP_HEIGHT * KAPNET_MAP_WIDTH)
#define KAPNET_CHANNELS @channels@
/* How many logits there are; one logit stands for two classes. */
#define KAPNET_LOGITS @logits@
#define KAPNET_CLASSES (KAPNET_LOGITS == 1 ? 2 : KAPNET_LOGITS)
/* A feature is FEATURES_SCALE * (number - FEATURES_ZERO_POINT). */
#define KAPNET_FEATURES_ZERO_POINT (@features_zero_point@)
#define KAPNET_LOGITS_ZERO_POINT (@logits_zero_point@)
@constants@
typedef enum {
  KAPNET_ALIVE = 0,
  /* The map is zero everywhere: nothing speaks for the score. */
  KAPNET_DEAD = 1,
  /* No such class; nothing was written. */
  KAPNET_BAD_CLASS = 2
} kapnet_status;

typedef struct {
  /* Row by row; 255 is the largest of this map. All 0 in a dead map. */
  uint8_t map[KAPNET_MAP_SIZE];
  /* The map before it was divided by its largest; see KAPNET_RAW_UNIT. */
  uint32_t raw[KAPNET_MAP_SIZE];
@fields@} kapnet_explanation;

/* The class of the largest logit, the first of equal ones; of a single logit 1
 * where it is not negative, else 0. */
int kapnet_top_class(const int8_t logits[KAPNET_LOGITS]);

@declarations@
#ifdef __cplusplus
}
#endif

#endif  /* KAPNET_EXPLAIN_H_ */
