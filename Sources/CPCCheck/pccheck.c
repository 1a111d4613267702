/* The functions of pccheck.h are implemented in Swift, in the module PCCheckC. */
#include "pccheck.h"

#include "kept_message.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void make_key(void)
{
    has_key = pthread_key_create(&key, free) == 0;
}

void pcck_keep_message(char *text)
{
    pthread_once(&once, make_key);
    if (!has_key) {
        free(text);
        return;
    }
    free(pthread_getspecific(key));
    if (pthread_setspecific(key, text) != 0)
        free(text);
}

const char *pcck_kept_message(void)
{
    pthread_once(&once, make_key);
    return has_key ? pthread_getspecific(key) : NULL;
}
