/* Programs are built for macOS 12.0 and newer.  Runs in each process of a software Mac. */
#define MAC_OS_X_VERSION_MIN_REQUIRED 120000
#define MAC_OS_X_VERSION_MAX_ALLOWED 120000
#define TARGET_OS_OSX 1
