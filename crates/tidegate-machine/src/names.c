/*
 * A program that is linked statically to the GNU C library still loads that library's modules for names, those that the
 * machine's /etc/nsswitch.conf lists, and they belong to another version of it: on some machines that ends the program. What
 * a worker needs, the hosts file and DNS, is a part of the library itself. A program that is linked as usual is left alone.
 */
#include <sys/auxv.h>

extern int __nss_configure_lookup(const char *database, const char *services);

__attribute__((constructor)) static void tidegate_names(void) {
    /* Whoever was not started by the dynamic loader is static. */
    if (getauxval(AT_BASE) != 0) {
        return;
    }
    __nss_configure_lookup("hosts", "files dns");
    __nss_configure_lookup("passwd", "files");
    __nss_configure_lookup("group", "files");
    __nss_configure_lookup("services", "files");
    __nss_configure_lookup("protocols", "files");
    __nss_configure_lookup("networks", "files");
}
