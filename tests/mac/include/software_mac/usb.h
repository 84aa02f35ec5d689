/* The part of IOUSBLib.h and USB.h that is used. */
#ifndef SOFTWARE_MAC_USB_H
#define SOFTWARE_MAC_USB_H

#include <software_mac/iokit.h>

typedef UInt16 USBDeviceAddress;

/* iokit_usb_err() of USB.h */
#define kIOUSBUnknownPipeErr software_mac_error(0x4061)
#define kIOUSBNoAsyncPortErr software_mac_error(0x405f)
#define kIOUSBNotEnoughPipesErr software_mac_error(0x4060)
#define kIOUSBConfigNotFound software_mac_error(0x4056)
#define kIOUSBInterfaceNotFound software_mac_error(0x404e)
#define kIOUSBTransactionTimeout software_mac_error(0x4051)
#define kIOUSBTransactionReturned software_mac_error(0x4050)
#define kIOUSBPipeStalled software_mac_error(0x404f)
#define kIOUSBHighSpeedSplitError software_mac_error(0x404b)

#define kIOUSBInterfaceClassName "IOUSBInterface"
#define kUSBDevicePropertyLocationID "locationID"
#define kUSBVendorString "USB Vendor Name"
#define kUSBProductString "USB Product Name"
#define kUSBSerialNumberString "USB Serial Number"

enum { kUSBOut = 0, kUSBIn = 1, kUSBNone = 2, kUSBAnyDirn = 3 };
enum { kUSBControl = 0, kUSBIsoc = 1, kUSBBulk = 2, kUSBInterrupt = 3, kUSBAnyType = 0xff };
enum { kUSBStandard = 0, kUSBClass = 1, kUSBVendor = 2 };
enum { kUSBDevice = 0, kUSBInterface = 1, kUSBEndpoint = 2, kUSBOther = 3 };
enum { kUSBRqGetDescriptor = 6, kUSBDeviceDesc = 1, kUSBRqDirnShift = 7 };
enum {
    kUSBDeviceSpeedLow = 0,
    kUSBDeviceSpeedFull = 1,
    kUSBDeviceSpeedHigh = 2,
    kUSBDeviceSpeedSuper = 3,
    kUSBDeviceSpeedSuperPlus = 4,
    kUSBDeviceSpeedSuperPlusBy2 = 5
};
enum { kIOUSBVendorIDAppleComputer = 0x05ac, kIOUSBFindInterfaceDontCare = 0xffff };
enum { kUSBInformationDeviceIsSuspendedBit = 2 };
enum { kUSBEndpointPropertiesVersion3 = 3 };

#define kUSBReEnumerateCaptureDeviceMask (1U << 30)
#define kUSBReEnumerateReleaseDeviceMask (1U << 29)

#define USBmakebmRequestType(direction, type, recipient) \
    ((UInt8)((((direction) & 1) << kUSBRqDirnShift) | (((type) & 3) << 5) | ((recipient) & 31)))
#define OSSwapLittleToHostInt16(value) ((UInt16)(value))

typedef struct __attribute__((packed)) {
    UInt8 bLength;
    UInt8 bDescriptorType;
    UInt16 bcdUSB;
    UInt8 bDeviceClass;
    UInt8 bDeviceSubClass;
    UInt8 bDeviceProtocol;
    UInt8 bMaxPacketSize0;
    UInt16 idVendor;
    UInt16 idProduct;
    UInt16 bcdDevice;
    UInt8 iManufacturer;
    UInt8 iProduct;
    UInt8 iSerialNumber;
    UInt8 bNumConfigurations;
} IOUSBDeviceDescriptor;

typedef struct __attribute__((packed)) {
    UInt8 bLength;
    UInt8 bDescriptorType;
    UInt16 wTotalLength;
    UInt8 bNumInterfaces;
    UInt8 bConfigurationValue;
    UInt8 iConfiguration;
    UInt8 bmAttributes;
    UInt8 MaxPower;
} IOUSBConfigurationDescriptor, *IOUSBConfigurationDescriptorPtr;

typedef struct {
    UInt16 bInterfaceClass;
    UInt16 bInterfaceSubClass;
    UInt16 bInterfaceProtocol;
    UInt16 bAlternateSetting;
} IOUSBFindInterfaceRequest;

typedef struct {
    UInt8 bmRequestType;
    UInt8 bRequest;
    UInt16 wValue;
    UInt16 wIndex;
    UInt16 wLength;
    void *pData;
    UInt32 wLenDone;
    UInt32 noDataTimeout;
    UInt32 completionTimeout;
} IOUSBDevRequestTO;

typedef struct {
    IOReturn frStatus;
    UInt16 frReqCount;
    UInt16 frActCount;
} IOUSBIsocFrame;

typedef struct {
    UInt8 bVersion;
    UInt8 bAlternateSetting;
    UInt8 bDirection;
    UInt8 bEndpointNumber;
    UInt8 bTransferType;
    UInt8 bUsageType;
    UInt8 bSyncType;
    UInt8 bInterval;
    UInt16 wMaxPacketSize;
    UInt8 bMaxBurst;
    UInt8 bMaxStreams;
    UInt8 bMult;
    UInt16 wBytesPerInterval;
} IOUSBEndpointProperties;

typedef struct {
    SOFTWARE_MAC_UNKNOWN;
    IOReturn (*CreateDeviceAsyncEventSource)(void *self, CFRunLoopSourceRef *source);
    IOReturn (*USBDeviceOpen)(void *self);
    IOReturn (*USBDeviceOpenSeize)(void *self);
    IOReturn (*USBDeviceClose)(void *self);
    IOReturn (*GetDeviceClass)(void *self, UInt8 *value);
    IOReturn (*GetDeviceVendor)(void *self, UInt16 *value);
    IOReturn (*GetDeviceProduct)(void *self, UInt16 *value);
    IOReturn (*GetDeviceAddress)(void *self, USBDeviceAddress *value);
    IOReturn (*GetDeviceSpeed)(void *self, UInt8 *value);
    IOReturn (*GetNumberOfConfigurations)(void *self, UInt8 *value);
    IOReturn (*GetLocationID)(void *self, UInt32 *value);
    IOReturn (*GetUSBDeviceInformation)(void *self, UInt32 *value);
    IOReturn (*GetConfiguration)(void *self, UInt8 *value);
    IOReturn (*GetConfigurationDescriptorPtr)(void *self, UInt8 index, IOUSBConfigurationDescriptorPtr *descriptor);
    IOReturn (*SetConfiguration)(void *self, UInt8 value);
    IOReturn (*ResetDevice)(void *self);
    IOReturn (*USBDeviceReEnumerate)(void *self, UInt32 options);
    IOReturn (*USBDeviceSuspend)(void *self, Boolean suspend);
    IOReturn (*USBDeviceAbortPipeZero)(void *self);
    IOReturn (*CreateInterfaceIterator)(void *self, IOUSBFindInterfaceRequest *request, io_iterator_t *iterator);
    IOReturn (*DeviceRequestTO)(void *self, IOUSBDevRequestTO *request);
    IOReturn (*DeviceRequestAsyncTO)(void *self, IOUSBDevRequestTO *request, IOAsyncCallback1 callback, void *refcon);
} IOUSBDeviceInterface197;

typedef IOUSBDeviceInterface197 IOUSBDeviceInterface320;
typedef IOUSBDeviceInterface197 IOUSBDeviceInterface650;

typedef struct {
    SOFTWARE_MAC_UNKNOWN;
    IOReturn (*CreateInterfaceAsyncEventSource)(void *self, CFRunLoopSourceRef *source);
    IOReturn (*USBInterfaceOpen)(void *self);
    IOReturn (*USBInterfaceClose)(void *self);
    IOReturn (*GetNumEndpoints)(void *self, UInt8 *value);
    IOReturn (*GetAlternateSetting)(void *self, UInt8 *value);
    IOReturn (*SetAlternateInterface)(void *self, UInt8 value);
    IOReturn (*GetPipeProperties)(void *self, UInt8 pipe, UInt8 *direction, UInt8 *number, UInt8 *transfer_type,
                                  UInt16 *max_packet_size, UInt8 *interval);
    IOReturn (*GetEndpointProperties)(void *self, UInt8 alternate_setting, UInt8 number, UInt8 direction,
                                      UInt8 *transfer_type, UInt16 *max_packet_size, UInt8 *interval);
    IOReturn (*GetPipePropertiesV3)(void *self, UInt8 pipe, IOUSBEndpointProperties *properties);
    IOReturn (*GetEndpointPropertiesV3)(void *self, IOUSBEndpointProperties *properties);
    IOReturn (*GetBusFrameNumber)(void *self, UInt64 *frame, AbsoluteTime *at);
    IOReturn (*AbortPipe)(void *self, UInt8 pipe);
    IOReturn (*ClearPipeStallBothEnds)(void *self, UInt8 pipe);
    IOReturn (*WritePipe)(void *self, UInt8 pipe, void *buffer, UInt32 length);
    IOReturn (*ControlRequestAsyncTO)(void *self, UInt8 pipe, IOUSBDevRequestTO *request, IOAsyncCallback1 callback,
                                      void *refcon);
    IOReturn (*ReadPipeAsync)(void *self, UInt8 pipe, void *buffer, UInt32 length, IOAsyncCallback1 callback,
                              void *refcon);
    IOReturn (*WritePipeAsync)(void *self, UInt8 pipe, void *buffer, UInt32 length, IOAsyncCallback1 callback,
                               void *refcon);
    IOReturn (*ReadPipeAsyncTO)(void *self, UInt8 pipe, void *buffer, UInt32 length, UInt32 no_data_timeout,
                                UInt32 completion_timeout, IOAsyncCallback1 callback, void *refcon);
    IOReturn (*WritePipeAsyncTO)(void *self, UInt8 pipe, void *buffer, UInt32 length, UInt32 no_data_timeout,
                                 UInt32 completion_timeout, IOAsyncCallback1 callback, void *refcon);
    IOReturn (*ReadIsochPipeAsync)(void *self, UInt8 pipe, void *buffer, UInt64 frame, UInt32 frame_count,
                                   IOUSBIsocFrame *frames, IOAsyncCallback1 callback, void *refcon);
    IOReturn (*WriteIsochPipeAsync)(void *self, UInt8 pipe, void *buffer, UInt64 frame, UInt32 frame_count,
                                    IOUSBIsocFrame *frames, IOAsyncCallback1 callback, void *refcon);
    IOReturn (*SupportsStreams)(void *self, UInt8 pipe, UInt32 *streams);
    IOReturn (*CreateStreams)(void *self, UInt8 pipe, UInt32 streams);
    IOReturn (*AbortStreamsPipe)(void *self, UInt8 pipe, UInt32 stream);
    IOReturn (*ReadStreamsPipeAsyncTO)(void *self, UInt8 pipe, UInt32 stream, void *buffer, UInt32 length,
                                       UInt32 no_data_timeout, UInt32 completion_timeout, IOAsyncCallback1 callback,
                                       void *refcon);
    IOReturn (*WriteStreamsPipeAsyncTO)(void *self, UInt8 pipe, UInt32 stream, void *buffer, UInt32 length,
                                        UInt32 no_data_timeout, UInt32 completion_timeout, IOAsyncCallback1 callback,
                                        void *refcon);
} IOUSBInterfaceInterface220;

typedef IOUSBInterfaceInterface220 IOUSBInterfaceInterface550;
typedef IOUSBInterfaceInterface220 IOUSBInterfaceInterface700;
typedef IOUSBInterfaceInterface220 IOUSBInterfaceInterface800;

#define kIOUSBDeviceUserClientTypeID software_mac_uuid(2)
#define kIOUSBInterfaceUserClientTypeID software_mac_uuid(3)
#define kIOUSBDeviceInterfaceID197 software_mac_uuid(1197)
#define kIOUSBDeviceInterfaceID320 software_mac_uuid(1320)
#define kIOUSBDeviceInterfaceID650 software_mac_uuid(1650)
#define kIOUSBInterfaceInterfaceID220 software_mac_uuid(2220)
#define kIOUSBInterfaceInterfaceID550 software_mac_uuid(2550)
#define kIOUSBInterfaceInterfaceID700 software_mac_uuid(2700)
#define kIOUSBInterfaceInterfaceID800 software_mac_uuid(2800)

#endif
