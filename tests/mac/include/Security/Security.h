#include <software_mac/all.h>
